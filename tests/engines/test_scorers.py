"""What a server says of given tokens, and its traps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from json_server import serving

from potstill.engines.scoring_server import Scored, ServerScorer, read_scores
from potstill.errors import InputError, TeacherError
from potstill.recipe.teacher import Server, Teacher

IDS = [5, 9, 17, 33, 8]


def entry(*ranked: tuple[int, float, int]) -> dict[str, Any]:
    return {str(token): {"logprob": logp, "rank": rank} for token, logp, rank in ranked}


def reply(**usage: Any) -> dict[str, Any]:
    listed = [None, *(entry((token, -3.0, 7), (1, -0.5, 1), (2, -1.5, 2)) for token in IDS[1:])]
    return {"choices": [{"prompt_logprobs": listed}], "usage": usage}


def test_the_actual_token_beyond_the_top_is_not_part_of_it() -> None:
    scored = read_scores(reply(), IDS, start=1, k=2)
    assert scored.signal.lse_N is None
    assert scored.signal.ids_NK.tolist() == [[1, 2]] * 4 and scored.token_logp_N.tolist() == [-3.0] * 4
    assert scored.signal.logp_NK.tolist() == [[-0.5, -1.5]] * 4


def test_scores_from_a_prefix_cache_and_missing_scores_are_refused() -> None:
    with pytest.raises(TeacherError, match="prefix cache"):
        read_scores(reply(prompt_tokens_details={"cached_tokens": 16}), IDS, start=1, k=2)
    with pytest.raises(TeacherError, match="gave 2 of 3 candidates"):
        read_scores(reply(), IDS, start=1, k=3)
    with pytest.raises(TeacherError, match="no prompt_logprobs"):
        read_scores({"choices": [{}]}, IDS, start=1, k=2)
    with pytest.raises(TeacherError, match="no prompt_logprobs"):
        read_scores({"choices": []}, IDS, start=1, k=2)


def test_a_server_that_is_not_there_is_said_in_a_sentence() -> None:
    server = Server(kind="server", url="http://127.0.0.1:9/v1", attempts=2, retry_seconds=0.01)

    async def score() -> Scored:
        async with ServerScorer(Teacher(model="m", licence="mit", engine=server), server, k=2) as scorer:
            return await scorer.score(IDS, start=1)

    with pytest.raises(TeacherError, match="the server did not score: no connection"):
        asyncio.run(score())


def test_an_error_inside_a_200_is_said_in_a_sentence() -> None:
    def answer(path: str, asked: Any) -> tuple[int, object]:
        return 200, {"error": {"message": "no such model", "code": 404}}

    async def score(url: str) -> Scored:
        server = Server(kind="server", url=url)
        async with ServerScorer(Teacher(model="m", licence="mit", engine=server), server, k=2) as scorer:
            return await scorer.score(IDS, start=1)

    with serving(answer) as url, pytest.raises(TeacherError, match="did not score: wrong address: no such model"):
        asyncio.run(score(url))


def test_a_reply_that_would_be_too_large_is_not_asked_for() -> None:
    server = Server(kind="server", url="http://127.0.0.1:9/v1", max_reply_bytes=100_000)
    scorer = ServerScorer(Teacher(model="m", licence="mit", engine=server), server, k=64)
    with pytest.raises(InputError, match="lower k"):
        asyncio.run(scorer.score(range(100), start=1))
