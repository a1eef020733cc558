"""Tokens drawn from a mixture of two models that read prompts of their own: they follow it, in whatever slots."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_slots import chi_square, fresh_logp
from transformers import PreTrainedModel

from potstill.engines.sampling import Sampling, draw_mixed
from potstill.engines.slots import Rollout, Rollouts, TeacherMix
from potstill.errors import InputError
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.text.tokens import Ids

SHARE = 0.4
WORDS = 12  # that may be drawn where drawn tokens are counted
END = 2


def opinionated(folder: Path) -> PreTrainedModel:
    """Random weights say next to nothing: larger ones do."""
    model = load(locate(str(folder)), dtype=torch.float32).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.5)
    return model


@pytest.fixture(scope="module")
def student(tiny_model: Path) -> PreTrainedModel:
    return opinionated(tiny_model)


@pytest.fixture(scope="module")
def teacher(make_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return opinionated(make_tiny_model(tmp_path_factory.mktemp("teacher"), seed=1, layers=3, hidden=48))


def mixed(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    slots: int = 8,
    share: float = SHARE,
    vocabulary: int | None = None,
) -> Rollouts:
    mix = TeacherMix(model=teacher, share=share, capacity_tokens=80)
    return Rollouts(student, slots=slots, capacity_tokens=64, end_ids={END}, vocabulary=vocabulary, teacher=mix)


def prompts_of_both(count: int) -> tuple[list[Ids], list[Ids]]:
    """The teacher is told more, of another length; every third of its prompts begins as the others of its kind do."""
    pick = random.Random(4)
    ours = [tuple(pick.randint(3, 250) for _ in range(pick.randint(1, 30))) for _ in range(count)]
    return ours, [(*range(40, 40 + pick.randint(20, 30)), *ids[-10:]) for ids in ours]


@torch.no_grad()
def next_p(model: PreTrainedModel, ids: Ids, vocabulary: int | None = None) -> torch.Tensor:
    """Of every token after the ids, by a fresh forward, in float64."""
    return model(torch.tensor([ids])).logits[0, -1, :vocabulary].double().softmax(-1)


def assert_follows(tokens: list[int], p_V: np.ndarray) -> None:
    value, freedom = chi_square(np.bincount(tokens, minlength=len(p_V)).astype(float), p_V)
    assert freedom > 5 and value < freedom + 4 * (2 * freedom) ** 0.5, (value, freedom)


def test_first_and_second_tokens_follow_the_mixture(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    ours, theirs = (7, 9, 30), (50, 51, 52, 7, 9, 30)
    q_V, p_V = next_p(student, ours, WORDS), next_p(teacher, theirs, WORDS)
    mixture_V = SHARE * p_V + (1 - SHARE) * q_V
    found = mixed(student, teacher, slots=256, vocabulary=WORDS).roll_out(
        [ours], teacher_prompts=[theirs], n=6000, sampling=Sampling(seed=2), max_new_tokens=2
    )
    first = [one.ids[0] for one in found]
    assert_follows(first, mixture_V.numpy())
    for other_V in (q_V, p_V, SHARE * next_p(teacher, ours, WORDS) + (1 - SHARE) * q_V):  # nor is that its prompt
        with pytest.raises(AssertionError):
            assert_follows(first, other_V.numpy())
    common = max(set(first) - {END}, key=first.count)
    q_V, p_V = next_p(student, (*ours, common), WORDS), next_p(teacher, (*theirs, common), WORDS)
    second_V = SHARE * p_V + (1 - SHARE) * q_V
    assert_follows([one.ids[1] for one in found if one.ids[0] == common], second_V.numpy())


def test_kept_log_probabilities_are_the_students_and_the_mixtures(
    student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    ours, theirs = prompts_of_both(12)
    limits = [1 + i % 9 for i in range(12)]
    engine = mixed(student, teacher, slots=3)
    for one in engine.roll_out(ours, teacher_prompts=theirs, n=2, sampling=Sampling(seed=1), max_new_tokens=limits):
        q, p = fresh_logp(student, ours[one.prompt], one.ids), fresh_logp(teacher, theirs[one.prompt], one.ids)
        drawn = (SHARE * p.exp() + (1 - SHARE) * q.exp()).log()
        torch.testing.assert_close(torch.tensor(one.logp).double(), q, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(one.drawn_logp).double(), drawn, atol=1e-4, rtol=1e-4)
    assert {len(ids) for ids in ours} != {len(ids) for ids in theirs}
    assert engine._models[1].prefilled < sum(map(len, theirs))  # what its prompts begin with was computed once


def test_answers_depend_neither_on_the_slots_nor_on_who_else_is_asked(
    student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    ours, theirs = prompts_of_both(30)
    limits = [1 + i % 9 for i in range(30)]
    how: dict[str, Any] = {"n": 2, "sampling": Sampling(temperature=0.8, top_p=0.95, seed=3)}
    few, many = (
        mixed(student, teacher, slots=slots).roll_out(ours, teacher_prompts=theirs, max_new_tokens=limits, **how)
        for slots in (4, 64)
    )

    def ids(found: list[Rollout]) -> list[Ids]:
        return [one.ids for one in found]

    assert ids(few) == ids(many)
    rest = mixed(student, teacher).roll_out(
        ours[20:], teacher_prompts=theirs[20:], max_new_tokens=limits[20:], numbers=range(20, 30), **how
    )
    assert ids(rest) == ids(few[40:])


@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.01, 0.5, 0.9]), heat=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_uniform_falls_into_the_mixtures_own_token(seed: int, share: float, heat: float) -> None:
    """Enumerated: 4,001 uniforms over five tokens, of which one is impossible for both and one for the student."""
    made = torch.Generator().manual_seed(seed)
    student_V, teacher_V = torch.randn(5, generator=made), torch.randn(5, generator=made)
    student_V[[1, 3]], teacher_V[3] = -torch.inf, -torch.inf
    u_R = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    rows = (len(u_R), -1)
    how = Sampling(temperature=heat)
    drawn = draw_mixed(student_V.expand(rows), teacher_V.expand(rows), share, how, u_R)
    p_V, q_V = ((x.double() / (heat or 1)).softmax(-1) for x in (teacher_V, student_V))
    mixture_V = share * p_V + (1 - share) * q_V
    if heat == 0:
        assert set(drawn.token_R.tolist()) == {int(mixture_V.argmax())}
        return
    seen_V = torch.bincount(drawn.token_R, minlength=5) / len(u_R)
    torch.testing.assert_close(seen_V.double(), mixture_V, atol=6e-4, rtol=0)
    torch.testing.assert_close(drawn.drawn_logp_R.double(), mixture_V.log()[drawn.token_R], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        drawn.logp_R.double(), student_V.double().log_softmax(-1)[drawn.token_R], atol=1e-5, rtol=1e-5
    )


def test_a_prompts_beginning_is_read_without_dropout(student: PreTrainedModel) -> None:
    """LoRA trains with dropout, and what prompts share is computed by itself."""
    prompts = [(*range(40, 70), 5 + i) for i in range(3)]
    engine = Rollouts(student, slots=4, capacity_tokens=64, end_ids={END})
    how: dict[str, Any] = {"sampling": Sampling(seed=1), "max_new_tokens": 4}
    calm = engine.roll_out(prompts, **how)
    layers = student.base_model.layers
    kept = [layer.self_attn.attention_dropout for layer in layers]
    student.train()
    try:
        for layer in layers:
            layer.self_attn.attention_dropout = 0.5
        assert engine.roll_out(prompts, **how) == calm
    finally:
        student.eval()
        for layer, rate in zip(layers, kept, strict=True):
            layer.self_attn.attention_dropout = rate


def test_bad_input_gets_one_sentence(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    how: dict[str, Any] = {"sampling": Sampling(), "max_new_tokens": 10}
    with pytest.raises(InputError, match=r"the teacher's share is 1\.0"):
        mixed(student, teacher, share=1.0)
    with pytest.raises(InputError, match="give teacher_prompts"):
        mixed(student, teacher).roll_out([(5,)], **how)
    with pytest.raises(InputError, match="none mixes in"):
        Rollouts(student, slots=2, capacity_tokens=64, end_ids={END}).roll_out([(5,)], teacher_prompts=[(5,)], **how)
    with pytest.raises(InputError, match="the teacher's prompt 0 has 75 tokens and its answer up to 10"):
        mixed(student, teacher).roll_out([(5,)], teacher_prompts=[(5,) * 75], **how)
