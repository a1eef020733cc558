"""On-policy: the student writes, the teacher scores; what it says on its own text comes nearer to the teacher."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from student_runs import FILMS, equal, kept_answers, logged, losses_of, recipe_in, refusal, taught
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout, Rollouts
from potstill.models.load import codec_of
from potstill.models.precision import Precision, precision
from potstill.models.student import first_layers, freeze
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.on_policy import OnPolicy
from potstill.recipe.train import TrainSettings
from potstill.records import Message
from potstill.text.tokens import Ids
from potstill.train.batch import Row
from potstill.train.data import OnPolicyData
from potstill.train.language import TokenObjective
from potstill.train.loop import Training, fit
from potstill.train.rollout_buffer import RolloutBuffer, WritesHere
from potstill.train.teaching import LiveTeacher

SOFT = {"kind": "logit_kd", "divergence": "reverse_kl", "alpha": 0.0}


def recipe_on_policy(folder: Path, model: Path, teacher: Path, **train: object) -> Path:
    lessons = {
        "method": SOFT,
        "on_policy": {"max_tokens": 6, "warm_up": 0.0, "slots": 5},
        "epochs": 6,
        "batch_size": 8,
        "learning_rate": 0.003,
        "scored_by": {"model": str(teacher), "licence": "mit"},
        **train,
    }
    recipe_in(folder, model, train=lessons)
    return folder / "recipe.yaml"


def kl_on_own_text(student: PreTrainedModel, teacher: PreTrainedModel, prompts: Sequence[Ids]) -> float:
    """Mean over tokens of KL(student || teacher), in float64, on answers that the student draws now."""
    rollouts = Rollouts(student, slots=8, capacity_tokens=64, end_ids=[2])
    written = rollouts.roll_out(prompts, n=8, sampling=Sampling(seed=5), max_new_tokens=6)
    total, count = 0.0, 0
    with torch.no_grad():
        for one in written:
            prefix = prompts[one.prompt]
            ids = torch.tensor([[*prefix, *one.ids[:-1]]])
            q, p = (m(ids).logits[0, len(prefix) - 1 :].double().log_softmax(-1) for m in (student, teacher))
            total += (q.exp() * (q - p)).sum().item()
            count += len(one.ids)
    return total / count


def test_a_head_wider_than_the_teachers_writes_only_what_the_teacher_can_read(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    wide = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    named = wide.config.vocab_size
    wide.resize_token_embeddings(named + 64)
    with torch.no_grad():
        wide.get_input_embeddings().weight[named:] = wide.get_input_embeddings().weight[:64] * 9  # its favourites
    shutil.copytree(tiny_model, tmp_path / "wide")
    wide.save_pretrained(tmp_path / "wide")
    own = {"max_tokens": 6, "warm_up": 0.0, "slots": 5, "guards": None}
    recipe = load_recipe(recipe_on_policy(tmp_path, tmp_path / "wide", teacher, epochs=1, on_policy=own))
    kept_answers(recipe, tmp_path / "run")
    made = Run(recipe, tmp_path / "run").train()["student"]
    assert AutoModelForCausalLM.from_pretrained(made).config.vocab_size == named + 64


def test_divergence_on_the_students_own_text_falls(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    folder = make_tiny_model(tmp_path / "teacher", seed=1)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():  # a random model says next to nothing: give it opinions
            parameter.mul_(2.0)
    teacher.save_pretrained(folder)
    recipe = load_recipe(recipe_on_policy(tmp_path, tiny_model, folder))
    kept_answers(recipe, tmp_path / "run")
    made = Run(recipe, tmp_path / "run").train()["student"]
    start = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    student = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    codec = codec_of(tiny_model, None, name="student")
    held_out = [f"say {a} {b}" for a in FILMS[6:] for b in FILMS if a != b]
    prompts = [codec.prefix([Message(role="user", content=asked)]) for asked in held_out]
    before, after = (kl_on_own_text(model, teacher, prompts) for model in (start, student))
    assert after < 0.5 * before
    losses = losses_of(tmp_path / "run")
    assert sum(losses[-4:]) / 4 < 0.5 * losses[0]
    told = json.loads((tmp_path / "run" / "arms" / "student" / "rollouts.json").read_text())
    assert told["reverse_kl_per_token"] == pytest.approx(after, rel=0.4)  # of two other prompts


def rows(count: int) -> list[Row]:
    return [Row(prefix=(5, 6 + i), target=(9, 2), teacher_prefix=(7, 5, 6 + i), ends_alike=False) for i in range(count)]


def test_a_share_of_the_answers_is_its_own_and_a_step_draws_the_same_again(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    how = OnPolicy(share=0.5, max_tokens=4, slots=3, warm_up=0.25)
    own = RolloutBuffer.here(model, how, end_of_turn=2, longest_prefix=2, seed=1)
    given = rows(40)
    assert own(lambda _: given, 1, 8) == given  # warm-up
    written = own(lambda _: given, 2, 8)
    changed = [i for i, (old, new) in enumerate(zip(given, written, strict=True)) if old.target != new.target]
    assert 10 < len(changed) < 30
    for i in changed:
        assert written[i].teacher_prefix == given[i].teacher_prefix and len(written[i].target) <= 4
        # an end-of-turn token that the teacher knows nothing of has no soft target; a cut-off answer has none at all
        assert written[i].ends_alike == (written[i].target[-1] != 2)
    again = RolloutBuffer.here(model, how, end_of_turn=2, longest_prefix=2, seed=1)
    assert again(lambda _: given, 2, 8) == written
    assert again(lambda _: given, 3, 8) != written


def test_it_writes_with_the_weights_as_they_are(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    own = RolloutBuffer.here(model, OnPolicy(temperature=0, max_tokens=3), end_of_turn=2, longest_prefix=2, seed=1)
    own(lambda _: rows(2), 5, 10)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[33] = 1.0
        model.base_model.norm.weight.fill_(1.0)
    first = model(torch.tensor([[5, 6]])).logits[0, -1].argmax().item()
    assert own(lambda _: rows(1), 5, 10)[0].target[0] == first


@pytest.mark.parametrize("computed_in", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_every_step_is_that_of_float64_autograd(
    frozen: bool,
    computed_in: Precision,
    tmp_path: Path,
    tiny_model: Path,
    make_tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a step, from the drawing to what the optimizer is given: several passes, answers that ended and answers
    that were cut off, weights that have moved since the last writing, embeddings that learn and embeddings that do not.
    In bf16, writer and teacher are rounded too: measured 0.005 of the gradient's norm and 0.003 nats."""
    folder = make_tiny_model(tmp_path / "teacher", seed=1)
    least, most = {"fp32": (0, 1e-5), "bf16": (1e-4, 1e-2)}[computed_in]  # 2^-9 a rounding
    dtype = torch.float32 if computed_in == "fp32" else torch.bfloat16
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2.0)
    student = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    with torch.no_grad():
        student.get_input_embeddings().weight[40] *= 5  # to be said again and again: some answers end, some are cut off
    freeze(student, embeddings=frozen, layers=0)
    trained = [p for p in student.parameters() if p.requires_grad]
    own = OnPolicy(samples=2, max_tokens=9, warm_up=0.0, slots=3)
    given = [Row(prefix=(*range(i), 40), target=(9, 40), teacher_prefix=(7, 5, 6 + i)) for i in range(12)]
    seen: list[tuple[list[Row], dict[str, torch.Tensor]]] = []
    gradients: list[list[torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def look(rows: Sequence[Row]) -> list[Row]:
        seen.append((list(rows), {name: value.clone() for name, value in student.state_dict().items()}))
        return list(rows)

    def clipped(_: object, most: float) -> torch.Tensor:
        gradients.append([p.grad.clone() for p in trained if p.grad is not None])
        return clip(trained, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    how = TrainSettings.model_validate(
        {"method": SOFT, "epochs": 1, "batch_size": 4, "learning_rate": 0.01, "pass_tokens": 60}
    )
    with precision(computed_in):
        writer = RolloutBuffer.here(student, own, end_of_turn=40, longest_prefix=12, seed=1)
        teach = LiveTeacher(teacher, [row.teacher_prefix for row in given])
        training = Training(
            data=OnPolicyData(given, buffer=writer, judge=look),
            objective=TokenObjective(method=how.method, teach=teach),
            settings=how,
            seed=0,
            validate=lambda _: {},
        )
        fit(student, training)
    assert len(seen) == 3
    assert {row.own.cut_off for rows, _ in seen for row in rows if row.own} == {True, False}
    for (rows, weights), found in zip(seen, gradients, strict=True):
        wanted = gradient_by_definition(student, weights, teacher, rows, within=1e-4 if computed_in == "fp32" else 1e-2)
        error = (torch.cat([g.flatten() for g in found]).double() - wanted).norm() / wanted.norm()
        assert least < error < most


def gradient_by_definition(
    student: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    teacher: PreTrainedModel,
    rows: Sequence[Row],
    *,
    within: float,
) -> torch.Tensor:
    """Of the mean over own tokens of KL(student || teacher), one answer at a time; what was written as the writer says
    it was on the way, `within` so many nats."""
    reference, scorer = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    reference.load_state_dict(weights)
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:

        def logp(model: PreTrainedModel, prefix: Ids, row: Row = row) -> torch.Tensor:
            return model(torch.tensor([[*prefix, *row.target[:-1]]])).logits[0, len(prefix) - 1 :].log_softmax(-1)

        q, p = logp(reference, row.prefix), logp(scorer, row.teacher_prefix)
        assert row.own is not None
        said = q[torch.arange(len(row.target)), list(row.target)]
        assert said.tolist() == pytest.approx(row.own.logp, abs=within)
        loss = loss + (q.exp() * (q - p)).sum() / sum(len(one.target) for one in rows)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])


def test_on_policy_training_resumes_to_the_bit(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=3, checkpoint_seconds=1e-6)
    recipe = load_recipe(path, ["train.on_policy.share=0.7"])
    assert equal(taught(recipe, tmp_path / "a"), taught(recipe, tmp_path / "b", stops=[1, 4, 5, 9]))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_answers_for_several_steps_are_written_in_one_call(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    how = OnPolicy(share=0.7, max_tokens=4, slots=3, warm_up=0.3, steps_per_generation=3)
    given = [rows(9)[i % 9 :] + rows(9)[: i % 9] for i in range(10)]  # another order in every step
    calls: list[int] = []

    def writing() -> RolloutBuffer:
        here = WritesHere(model, slots=3, capacity_tokens=6, end_of_turn=2)

        def writes(some: Sequence[Row], **asked: Any) -> list[Rollout]:
            calls.append(len(some))
            return here(some, **asked)

        return RolloutBuffer(how, writes, seed=1)

    own = writing()
    written: list[list[Row]] = []
    for step in range(10):
        written.append(own(lambda at: given[at], step, 10))
        own.restore(json.loads(json.dumps(own.state())))  # as a checkpoint after every step would
    assert [any(row.own for row in some) for some in written] == [step >= 3 for step in range(10)]
    assert len(calls) == 3 and sum(calls) == sum(row.own is not None for some in written for row in some)
    for some, kept in zip(written, given, strict=True):
        assert [row.prefix for row in some] == [row.prefix for row in kept]
        assert all(row.own.prompt == at for at, row in enumerate(some) if row.own)
    again = writing()
    assert [again(lambda at: given[at], step, 10) for step in range(10)] == written


def test_answers_that_wait_for_their_step_resume_to_the_bit(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    method = {"kind": "policy_gradient"}
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=2, checkpoint_seconds=1e-6, method=method)
    recipe = load_recipe(path, ["train.on_policy.steps_per_generation=4", "train.on_policy.samples=2"])
    assert equal(taught(recipe, tmp_path / "a"), taught(recipe, tmp_path / "b", stops=[1, 2, 5, 7]))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    gaps = [row["log_probability_gap"] for row in logged(tmp_path / "a")]
    fresh, stale = gaps[::4], [gap for at, gap in enumerate(gaps) if at % 4]
    assert max(fresh) < 0.2 * min(stale)  # weights went on while the answers waited


MISTAKES = {
    "nobody scores": (["train.method={kind: sft}", "train.scored_by=null"], "'method' sft reads no scores"),
    "a cache": (["train.signal={kind: top_k}"], "'signal' must be live"),
    "its own answers": (["train.method={kind: logit_kd, alpha: 0.5}"], "set 'method.alpha' to 0"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_on_policy_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = MISTAKES[name]
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model)
    assert said in refusal("train", path, overrides, capsys)
