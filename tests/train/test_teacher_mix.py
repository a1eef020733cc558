"""Answers that teacher and student draw together: what weighs their tokens, and students that learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from student_runs import equal, kept_answers, logged, refusal, taught
from test_advantages import REVERSE, SEQUENCE, TOKEN, advantages, logp, opinionated
from test_on_policy import SOFT, kl_on_own_text, recipe_on_policy
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import CHATML
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts, TeacherMix
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.methods import LogitKd, Method, PolicyGradient
from potstill.recipe.on_policy import OnPolicy
from potstill.records import Message
from potstill.text.tokens import Ids
from potstill.train.batch import Own, Row, Whole, collate
from potstill.train.methods import Logged, terms
from potstill.train.rollout_buffer import RolloutBuffer
from potstill.train.teaching import LiveTeacher

SHARE = 0.7
ASKED: Ids = tuple(range(20, 30))
TOLD: Ids = (40, 41, 42, *ASKED)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path]) -> PreTrainedModel:
    folder = opinionated(tmp_path_factory.mktemp("mixed") / "teacher", make_tiny_model)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def student(tiny_model: Path) -> PreTrainedModel:
    return first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2).eval()


def gradient(
    student: PreTrainedModel, some: Sequence[Row], method: Method, teach: LiveTeacher
) -> tuple[torch.Tensor, Logged]:
    student.zero_grad()
    batch = collate(some, (), whole=Whole.of(some), device=torch.device("cpu"))
    signal = teach(some) if isinstance(method, LogitKd) else None
    loss, said = terms(method, student, hidden_rows(student, batch.documents, batch.at_R), batch, signal=signal)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).double(), said


def drawn_together(student: PreTrainedModel, teacher: PreTrainedModel, count: int) -> list[Row]:
    """Answers of one token, with what it was drawn with."""
    mix = TeacherMix(model=teacher, share=SHARE, capacity_tokens=20)
    engine = Rollouts(student, slots=64, capacity_tokens=20, end_ids=[2], teacher=mix)
    found = engine.roll_out([ASKED], teacher_prompts=[TOLD], n=count, sampling=Sampling(seed=1), max_new_tokens=1)
    own = [Own(prompt=0, cut_off=True, logp=one.logp, drawn_logp=one.drawn_logp) for one in found]
    return [Row(prefix=ASKED, target=one.ids, teacher_prefix=TOLD, own=o) for one, o in zip(found, own, strict=True)]


def plain_gradient(student: PreTrainedModel, teacher: PreTrainedModel, *, centred: bool) -> torch.Tensor:
    """What tokens of the mixture give on average if nothing weighs them: over all there are."""
    student.zero_grad()
    q_V = student(torch.tensor([ASKED])).logits[0, -1].log_softmax(-1)
    with torch.no_grad():
        p_V = teacher(torch.tensor([TOLD])).logits[0, -1].log_softmax(-1)
        mixture_V, gain_V = SHARE * p_V.exp() + (1 - SHARE) * q_V.exp(), p_V - q_V
        gain_V -= (mixture_V * gain_V).sum() if centred else 0.0
    (-(mixture_V * gain_V) * q_V).sum().backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("method", [TOKEN, SEQUENCE], ids=["token", "sequence"])
def test_weighed_tokens_give_the_exact_gradient_and_plain_ones_do_not(
    student: PreTrainedModel, teacher: PreTrainedModel, method: PolicyGradient
) -> None:
    """24 lots of 64 tokens drawn from the mixture, each a gradient; their mean against that of the whole
    distribution's reverse KL, 3 sigma, along it and along what it lacks to be the plain tokens' (enumerated)."""
    teach = LiveTeacher(teacher, [TOLD])
    exact, _ = gradient(student, [Row(prefix=ASKED, target=(5,), teacher_prefix=TOLD)], REVERSE, teach)
    lacks = plain_gradient(student, teacher, centred=method.level == "sequence") - exact
    mixed = advantages(method, teacher, drawn_together(student, teacher, 24 * 64), samples=24 * 64)

    def lots(some: Sequence[Row]) -> torch.Tensor:
        return torch.stack([gradient(student, some[i : i + 64], method, teach)[0] for i in range(0, len(some), 64)])

    def off(lots: torch.Tensor, way: torch.Tensor) -> float:
        """By how many standard errors the mean differs from the exact gradient."""
        each = (lots - exact) @ way
        return abs(each.mean() / each.std()).item() * len(lots) ** 0.5

    found = lots(mixed)
    assert off(found, exact) < 3 and off(found, lacks) < 3
    assert off(found - found.mean(0), exact) > 6  # no gradient at all would be seen
    plain = [replace(row, own=replace(row.own, drawn_logp=())) for row in mixed if row.own is not None]
    assert off(lots(plain), lacks) > 6


def test_a_token_weighs_q_over_what_it_was_drawn_with_whatever_is_clipped(
    student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    """Two answers of three tokens, tokens of uneven weight; a student that has moved since, so that ratios are not 1
    and some are clipped. By definition, with autograd."""
    teach = LiveTeacher(teacher, [TOLD])
    targets: list[Ids] = [(9, 12, 15), (31, 7, 8)]
    moved = [(0.5, -0.4, 0.1), (0.0, 0.3, -0.6)]  # ln q when written, less that of now
    weighs = [(0.5, 1.25, 0.8), (1.9, 0.1, 1.0)]
    gains = [(0.7, -0.9, 0.4), (-1.1, 0.6, 0.2)]
    some: list[Row] = []
    for target, shift, weigh, gain in zip(targets, moved, weighs, gains, strict=True):
        written = logp(student, ASKED, target) + torch.tensor(shift)
        drawn = written - torch.tensor(weigh).log()
        own = Own(
            prompt=0, cut_off=True, logp=tuple(written.tolist()), drawn_logp=tuple(drawn.tolist()),
            advantage=gain, log_ratio=gain,
        )  # fmt: skip
        some.append(Row(prefix=ASKED, target=target, teacher_prefix=TOLD, own=own))
    for method in (TOKEN, replace_clip(SEQUENCE, 0.2), replace_clip(TOKEN, None)):
        if method.level == "sequence":  # one worth a whole answer
            some = [
                replace(row, own=replace(row.own, advantage=(row.own.advantage[0],) * 3)) for row in some if row.own
            ]
        found, said = gradient(student, some, method, teach)
        torch.testing.assert_close(found, by_definition(student, some, method), atol=1e-6, rtol=1e-4)
        gaps = [abs(value) for shift in moved for value in shift]
        assert said["log_probability_gap"] == pytest.approx(sum(gaps) / 6, abs=1e-4)  # of ln q, not of the mixture
        pairs = [(w, g) for weigh, gain in zip(weighs, gains, strict=True) for w, g in zip(weigh, gain, strict=True)]
        assert said["reverse_kl"] == pytest.approx(-sum(w * g for w, g in pairs) / 6, abs=1e-4)


def replace_clip(method: PolicyGradient, clip: float | None) -> PolicyGradient:
    return method.model_copy(update={"clip": clip})


def by_definition(student: PreTrainedModel, some: Sequence[Row], method: PolicyGradient) -> torch.Tensor:
    student.zero_grad()
    loss = torch.zeros(())
    for row in some:
        assert row.own is not None
        now = student(torch.tensor([[*row.prefix, *row.target[:-1]]])).logits[0, len(row.prefix) - 1 :].log_softmax(-1)
        now = now[torch.arange(3), list(row.target)]
        written, drawn = torch.tensor(row.own.logp), torch.tensor(row.own.drawn_logp)
        gain, weigh = torch.tensor(row.own.advantage), (written - drawn).exp()
        moved = now - written
        ratio = (moved.sum() if method.level == "sequence" else moved).exp().detach().expand(3)
        low, high = (-1e9, 1e9) if method.clip is None else (1 - method.clip, 1 + method.clip)
        free = ~(((gain > 0) & (ratio > high)) | ((gain < 0) & (ratio < low)))
        loss = loss - (weigh * ratio * gain * free * now).sum() / 6
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).double()


def test_soft_targets_take_mixed_answers_as_they_are(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    teach = LiveTeacher(teacher, [TOLD])
    mixed = drawn_together(student, teacher, 8)
    plain = [replace(row, own=None) for row in mixed]
    one, other = (gradient(student, some, REVERSE, teach)[0] for some in (mixed, plain))
    assert torch.equal(one, other)


def test_own_rows_say_what_they_were_drawn_with(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    how = OnPolicy(max_tokens=4, slots=3, warm_up=0.0, samples=3, teacher_mix=SHARE)
    mix = TeacherMix(model=teacher, share=SHARE, capacity_tokens=9)
    own = RolloutBuffer.here(student, how, end_of_turn=2, longest_prefix=2, teacher=mix, seed=1)
    given = [Row(prefix=(5, 6 + i), target=(9, 2), teacher_prefix=(7, 40, 41, 5, 6 + i)) for i in range(4)]
    for row in own(lambda _: given, 2, 8):
        assert row.own is not None
        q, p = logp(student, row.prefix, row.target), logp(teacher, row.teacher_prefix, row.target)
        assert list(row.own.logp) == pytest.approx(q.tolist(), abs=0.05)  # written in the machine's precision
        drawn = (SHARE * p.exp() + (1 - SHARE) * q.exp()).log()
        assert list(row.own.drawn_logp) == pytest.approx(drawn.tolist(), abs=0.05)


@pytest.mark.parametrize("method", [SOFT, {"kind": "policy_gradient"}], ids=["logit_kd", "policy_gradient"])
def test_a_student_learns_from_mixed_answers_and_resumes_to_the_bit(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], method: dict[str, object]
) -> None:
    folder = opinionated(tmp_path / "teacher", make_tiny_model)
    how = {"max_tokens": 6, "warm_up": 0.0, "slots": 32, "samples": 2, "teacher_mix": 0.3}
    path = recipe_on_policy(
        tmp_path, tiny_model, folder, method=method, on_policy=how, epochs=4, checkpoint_seconds=1e-6
    )
    recipe = load_recipe(path, ["train.guards=null"])
    kept_answers(recipe, tmp_path / "a")
    made = Run(recipe, tmp_path / "a").train()["student"]
    start = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    after, judge = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32).eval() for m in (made, folder))
    prompts = [codec_of(tiny_model, None, name="student").prefix([Message(role="user", content="say nap idea")])]
    assert kl_on_own_text(after, judge, prompts) < 0.8 * kl_on_own_text(start, judge, prompts)
    stopped = taught(recipe, tmp_path / "b", stops=[1, 5])
    assert equal(stopped, AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).state_dict())
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    other = load_recipe(path, ["train.guards=null", "train.on_policy.teacher_mix=0"])
    assert not equal(stopped, taught(other, tmp_path / "c"))


SERVED = "{model: big, licence: mit, tokenizer: FOLDER, engine: {kind: server, url: 'http://127.0.0.1:1/v1'}}"
MISTAKES = {
    "all teacher": (["train.on_policy.teacher_mix=1"], "teacher_mix"),
    "less than nothing": (["train.on_policy.teacher_mix=-0.1"], "teacher_mix"),
    "a server": ([f"train.scored_by={SERVED}", "train.on_policy.teacher_mix=0.2"], "a server does not give"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = MISTAKES[name]
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model)
    filled = [one.replace("FOLDER", str(tiny_model)) for one in overrides]
    assert said in refusal("train", path, filled, capsys)


def test_a_teacher_that_ends_its_turns_otherwise_does_not_mix_in(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CHATML.replace("<|im_end|>", "<|endoftext|>")
    scorer = {"model": str(tiny_model), "licence": "mit", "template": other}
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, scored_by=scorer)
    kept_answers(load_recipe(path), tmp_path / "run")
    said = refusal("train", path, ["train.on_policy.teacher_mix=0.2"], capsys)
    assert "ends its turns with another token than the student" in said
