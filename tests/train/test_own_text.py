"""What rollouts.json says of a student's own text is what both models say of it, token by token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from potstill.engines.slots import Rollout
from potstill.models.load import codec_of
from potstill.recipe.on_policy import OnPolicy
from potstill.train.batch import Row
from potstill.train.own_text import Told, own_text, pieces, summary
from potstill.train.teaching import LiveTeacher


def rows(count: int) -> list[Row]:
    return [Row(prefix=(5, 6 + i), target=(9, 2), teacher_prefix=(7, 5, 6 + i), ends_alike=True) for i in range(count)]


def test_samples_hold_what_student_and_teacher_say(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    folder = make_tiny_model(tmp_path / "teacher", seed=3)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32).eval() for m in (tiny_model, folder)
    )
    codec = codec_of(tiny_model, None, name="student")
    asked = rows(40)
    live = LiveTeacher(teacher, [row.teacher_prefix for row in asked])
    told = own_text(student, asked, teacher=live, how=OnPolicy(max_tokens=9), codec=codec, seed=4)
    assert (told["prompts"], told["answers"], told["max_tokens"]) == (40, 40, 9)
    low, high = told["reverse_kl"]["ci95"]
    assert 0 < low < told["reverse_kl"]["value"] < high
    assert told["by_position"][0]["n"] == 40 and len(told["by_position"]) == 9
    assert all(one["n"] >= two["n"] for one, two in pairwise(told["by_position"]))
    assert len(told["samples"]) == 6
    for sample, row in zip(told["samples"], asked[::7], strict=True):
        assert sample["prompt"] == codec.text(row.prefix)
        ids = _ids(codec.tokenizer, [text for text, *_ in sample["tokens"]])
        if ids is None:
            continue
        for model, prefix, column in ((student, row.prefix, 1), (teacher, row.teacher_prefix, 2)):
            with torch.no_grad():
                logp = model(torch.tensor([[*prefix, *ids]])).logits[0].double().log_softmax(-1)
            said = [logp[len(prefix) - 1 + i, token].item() for i, token in enumerate(ids)]
            assert said == pytest.approx([token[column] for token in sample["tokens"]], abs=2e-4)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[int] | None:
    """Back to ids where every piece is the text of one token, which random bytes need not be."""
    by_text = {tokenizer.decode([i], skip_special_tokens=False): i for i in range(tokenizer.get_vocab_size())}
    found = [by_text.get(text) for text in texts]
    return [i for i in found if i is not None] if None not in found and "\ufffd" not in "".join(texts) else None


def told_of(prompt: int, kl: list[float]) -> Told:
    answer = Rollout(prompt=prompt, index=0, ids=(1,) * len(kl), logp=(), drawn_logp=(), finish="stop")
    return Told(answer, kl, kl, kl)


def test_the_divergence_of_answers_is_a_mean_over_prompts_of_sums_over_tokens() -> None:
    found = summary([told_of(0, [1.0, 2.0]), told_of(0, [1.0]), told_of(1, [4.0, 4.0])], seed=0)
    assert found["reverse_kl"]["value"] == 5.0 and found["reverse_kl"]["ci95"] == [2.0, 8.0]
    assert found["reverse_kl_per_token"] == 12 / 5
    assert found["by_position"] == [{"kl": 2.0, "n": 3}, {"kl": 3.0, "n": 2}]
    assert summary([told_of(0, [1.0])], seed=0)["reverse_kl"]["ci95"] is None
    assert summary([told_of(0, [])], seed=0)["by_position"] == []  # an end that the teacher cannot score, and no more


@given(st.text(alphabet="a\n é日😀", max_size=12))
def test_pieces_join_to_the_whole(text: str) -> None:
    ids = list(text.encode())
    found = pieces(ids, lambda some: bytes(some).decode(errors="replace"))
    assert len(found) == len(ids) and "".join(found) == text
