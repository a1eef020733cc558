"""Caching, batching and padding change the speed of scoring, never its result."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from potstill.engines.local import ChoiceScorer, plan_batches, shared_prefix
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.text.tokens import Ids

CHOICES: list[tuple[Ids, ...]] = [((7,), (9,)), ((7, 8, 9), (9,), (7, 5))]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load(locate(str(tiny_model)), dtype=torch.float32).model


def naive(model: PreTrainedModel, prompt: Ids, choice: Ids) -> float:
    """One prompt, one choice, no batch, no cache."""
    with torch.no_grad():
        logp = model(torch.tensor([[*prompt, *choice]])).logits.double().log_softmax(-1)[0]
    return sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(choice))


prompt_lists = st.lists(st.lists(st.integers(3, 300), min_size=1, max_size=12).map(tuple), min_size=1, max_size=9)


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("prefix", [(), (4, 5, 6, 11, 12)])
@given(suffixes=prompt_lists, budget=st.integers(1, 64))
def test_scores_equal_one_prompt_at_a_time(
    model: PreTrainedModel, choices: tuple[Ids, ...], prefix: Ids, suffixes: list[Ids], budget: int
) -> None:
    prompts = [(*prefix, *suffix) for suffix in suffixes]
    found: dict[int, tuple[float, ...]] = {}
    for batch in ChoiceScorer(model, choices, prefix=prefix).score(prompts, batch_tokens=budget):
        found |= dict(zip(batch.positions, batch.choice_logp, strict=True))
    expected = [[naive(model, prompt, choice) for choice in choices] for prompt in prompts]
    torch.testing.assert_close(
        torch.tensor([found[i] for i in range(len(prompts))]),
        torch.tensor(expected),
        atol=2e-4,
        rtol=1e-4,
    )


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(1, 200))
def test_batches_cover_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_finished_batches_are_skipped_and_the_others_keep_their_numbers(
    model: PreTrainedModel,
) -> None:
    prompts: list[Ids] = [(3, 4), (5, 6), (7, 8, 9), (3, 5, 7)]
    scorer = ChoiceScorer(model, CHOICES[0])
    whole = list(scorer.score(prompts, batch_tokens=6))
    rest = list(scorer.score(prompts, batch_tokens=6, skip=frozenset(whole[0].positions)))
    assert [b.number for b in rest] == [b.number for b in whole[1:]]
    assert [b.choice_logp for b in rest] == [b.choice_logp for b in whole[1:]]


@given(prompts=prompt_lists, prefix=st.lists(st.integers(3, 9), max_size=5).map(tuple))
def test_the_shared_prefix_leaves_every_prompt_a_token(prompts: list[Ids], prefix: Ids) -> None:
    whole = [(*prefix, *p) for p in prompts]
    shared = shared_prefix(whole)
    assert len(shared) >= len(prefix) - 1
    assert all(p[: len(shared)] == shared and len(p) > len(shared) for p in whole)
