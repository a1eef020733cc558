"""Rewards during training: the recipe's checks, each answer with the prompt that it names."""

from __future__ import annotations

import pytest

from potstill.errors import InputError
from potstill.recipe import Recipe
from potstill.records import Message, Prompt, Sample
from potstill.verify.rewards import rewarding

ASKED = (Message(role="user", content="which one?"),)
PROMPTS = [
    Prompt(id="one", split="train", messages=ASKED, reference="1"),
    Prompt(id="two", split="train", messages=ASKED, reference="2"),
    Prompt(id="unknown", split="train", messages=ASKED),
]


def recipe(**changes: object) -> Recipe:
    values = {
        "name": "x",
        "prompts": {"source": "none.jsonl", "licence": "mit", "columns": {"text": "text"}},
        "teacher": {"model": "m", "licence": "mit", "engine": {"kind": "canned", "answers": "a.jsonl"}},
        "verify": {"checks": [{"kind": "exact"}], "processes": 1},
        **changes,
    }
    return Recipe.model_validate(values, strict=False)


def test_two_prompts_with_the_same_text_and_other_references_get_their_own_reward() -> None:
    answers = [Sample(prompt_id=i, text=text) for i in ("one", "two") for text in ("1", "2")]
    with rewarding(recipe(), PROMPTS) as reward:
        assert list(reward(answers)) == [1.0, 0.0, 0.0, 1.0]
        assert list(reward(answers[:1])) == [1.0]  # again, in the same processes


def test_a_cut_off_answer_is_wrong_and_what_a_check_cannot_say_is_undecided() -> None:
    cut = Sample(prompt_id="one", text="1", cut_off=True)
    with rewarding(recipe(), PROMPTS) as reward:
        assert list(reward([cut, Sample(prompt_id="unknown", text="1")])) == [0.0, None]


def test_a_prompt_that_is_gone_is_named() -> None:
    with rewarding(recipe(), PROMPTS) as reward, pytest.raises(InputError, match="not in the recipe any more: 'three'"):
        reward([Sample(prompt_id="three", text="1")])
