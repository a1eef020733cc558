"""What a scorer says is the model's own distribution, and a served one's traps are caught."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.engines.scorer import Scored
from potstill.engines.scoring_local import LocalScorer
from potstill.engines.scoring_server import ServerScorer, read_scores
from potstill.errors import InputError, TeacherError
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.recipe.teacher import Server, Teacher
from potstill.signals import Hidden, TopK

IDS = [5, 9, 17, 33, 8]


def entry(*ranked: tuple[int, float, int]) -> dict[str, Any]:
    return {str(token): {"logprob": logp, "rank": rank} for token, logp, rank in ranked}


def reply(**usage: Any) -> dict[str, Any]:
    listed = [None, *(entry((token, -3.0, 7), (1, -0.5, 1), (2, -1.5, 2)) for token in IDS[1:])]
    return {"choices": [{"prompt_logprobs": listed}], "usage": usage}


def test_a_local_scorer_gives_the_models_own_distribution(tiny_model: Path) -> None:
    model = load(locate(str(tiny_model)), dtype=torch.float32).model
    scored = asyncio.run(LocalScorer(model, k=6).score(IDS, start=2))
    logp_LV = torch.log_softmax(model(input_ids=torch.tensor([IDS])).logits[0].float(), dim=-1)
    expected = logp_LV[1:-1].topk(6)
    signal = scored.signal
    assert isinstance(signal, TopK) and signal.lse_N is not None
    torch.testing.assert_close(signal.logp_NK, expected.values.detach(), atol=1e-5, rtol=0)
    assert torch.equal(signal.ids_NK, expected.indices)
    np.testing.assert_allclose(scored.token_logp_N, [logp_LV[i - 1, IDS[i]].item() for i in (2, 3, 4)], atol=1e-5)
    whole = asyncio.run(LocalScorer(model, k=None).score(IDS, start=2))
    assert isinstance(whole.signal, Hidden)
    logits_NV = whole.signal.hidden_ND @ whole.signal.head_VD.T
    torch.testing.assert_close(logits_NV.log_softmax(-1), logp_LV[1:-1].detach(), atol=1e-5, rtol=0)


def test_the_actual_token_beyond_the_top_is_not_part_of_it() -> None:
    scored: Scored = read_scores(reply(), IDS, start=1, k=2)
    assert isinstance(scored.signal, TopK) and scored.signal.lse_N is None
    assert scored.signal.ids_NK.tolist() == [[1, 2]] * 4 and scored.token_logp_N.tolist() == [-3.0] * 4
    assert scored.signal.logp_NK.tolist() == [[-0.5, -1.5]] * 4


def test_scores_from_a_prefix_cache_and_missing_scores_are_refused() -> None:
    with pytest.raises(TeacherError, match="prefix cache"):
        read_scores(reply(prompt_tokens_details={"cached_tokens": 16}), IDS, start=1, k=2)
    with pytest.raises(TeacherError, match="gave 2 of 3 candidates"):
        read_scores(reply(), IDS, start=1, k=3)
    with pytest.raises(TeacherError, match="no prompt_logprobs"):
        read_scores({"choices": [{}]}, IDS, start=1, k=2)


def test_a_server_that_is_not_there_is_said_in_a_sentence() -> None:
    server = Server(kind="server", url="http://127.0.0.1:9/v1", attempts=2, retry_seconds=0.01)

    async def score() -> Scored:
        async with ServerScorer(Teacher(model="m", licence="mit", engine=server), server, k=2) as scorer:
            return await scorer.score(IDS, start=1)

    with pytest.raises(TeacherError, match="the server did not score: no connection"):
        asyncio.run(score())


def test_a_reply_that_would_be_too_large_is_not_asked_for() -> None:
    server = Server(kind="server", url="http://127.0.0.1:9/v1", max_reply_bytes=100_000)
    scorer = ServerScorer(Teacher(model="m", licence="mit", engine=server), server, k=64)
    with pytest.raises(InputError, match="lower k"):
        asyncio.run(scorer.score(range(100), start=1))
