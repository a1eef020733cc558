"""The best weights are kept, training stops where nothing gets better, and both are the same after a kill."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import choices_by_hand
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from student_runs import recipe_in
from transformers import PreTrainedModel

from potstill.cli import execute
from potstill.errors import DiskError, GuardStopped, InputError
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.models.student import first_layers
from potstill.recipe.methods import Sft
from potstill.recipe.train import Best, TrainSettings
from potstill.records import Progress, Score, unwatched
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.train.batch import Row
from potstill.train.best import Choice
from potstill.train.data import Data
from potstill.train.language import TokenObjective
from potstill.train.loop import Fitted, Training, fit
from potstill.train.state import TrainState
from potstill.train.texts import held_back_nats
from potstill.train.traces import Traces
from potstill.train.validation import apart

SFT = Sft(kind="sft")
STEPS = 20


def rows(n: int, *, seed: int) -> list[Row]:
    draw = torch.Generator().manual_seed(seed)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=draw).tolist())

    return [Row(prefix=some(4), target=(7, *some(2), 2)) for _ in range(n)]


def settings(**best: Any) -> TrainSettings:
    chosen = Best(metric="nats_per_token", **best)
    often = {"validations": STEPS, "epochs": STEPS, "batch_size": 8, "checkpoint_seconds": 1e9, "warmup": 0.0}
    return TrainSettings(method=SFT, learning_rate=0.03, best=chosen, **often)  # pyright: ignore[reportArgumentType]


class Killed(BaseException):
    """Stands in for the process being gone."""


def train(
    start: PreTrainedModel,
    folder: Path,
    how: TrainSettings,
    *,
    kill_at: int | None = None,
    seen: list[Any] | None = None,
) -> tuple[PreTrainedModel, Fitted]:
    """Eight examples, random in part. What they have in common is learnt first and helps with others; then the rest is
    learnt by heart and does not."""
    model, held = copy.deepcopy(start), rows(8, seed=1)

    def validate(student: PreTrainedModel) -> dict[str, Score]:
        if seen is not None:
            seen.append(copy.deepcopy(student.state_dict()))
        return {"nats_per_token": held_back_nats(student, held)}

    def watch(p: Progress) -> None:
        if p.done == kill_at:
            raise Killed

    traces = Traces(
        arm="student",
        fingerprint="f",
        checkpoints=Checkpoints(folder / "checkpoints", better=how.better),
        metrics=Metrics(folder / "metrics.jsonl"),
        watch=unwatched if kill_at is None else watch,
    )
    training = Training(
        data=Data(rows(8, seed=0)),
        objective=TokenObjective(method=SFT),
        settings=how,
        seed=0,
        validate=validate,
        traces=traces,
    )
    return model, fit(model, training)


@pytest.fixture
def start(tiny_model: Path) -> PreTrainedModel:
    return first_layers(load(locate(str(tiny_model)), dtype=torch.float32).model, 1)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_of_the_best_validation_are_the_student(start: PreTrainedModel, tmp_path: Path) -> None:
    seen: list[Any] = []
    model, fitted = train(start, tmp_path, settings(), seen=seen)
    curve = [row["validation_nats_per_token"] for row in Metrics(tmp_path / "metrics.jsonl").rows()]
    best = curve.index(min(curve))
    assert 0 < best < STEPS - 4 and len(seen) == fitted.steps == STEPS
    assert same(model.state_dict(), seen[best]) and not same(model.state_dict(), seen[-1])
    assert fitted.chose is not None and not fitted.chose.stopped_early
    assert (fitted.chose.step, fitted.chose.score) == (best + 1, min(curve))


def test_a_killed_run_stops_at_the_same_step_with_the_same_weights(start: PreTrainedModel, tmp_path: Path) -> None:
    how = settings(early_stopping_patience=3)
    whole, fitted = train(start, tmp_path / "whole", how)
    assert fitted.chose is not None and fitted.chose.stopped_early
    assert fitted.steps == fitted.chose.step + 3 < STEPS
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["best_step"], last["stopped_early"]) == (fitted.chose.step, True)
    for stops in ([2], [fitted.chose.step + 2], [fitted.steps], [1, fitted.chose.step, fitted.steps - 1, fitted.steps]):
        folder = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(Killed):
                train(start, folder, how, kill_at=stop)
        model, again = train(start, folder, how)
        assert (again.steps, again.tokens, again.chose) == (fitted.steps, fitted.tokens, fitted.chose)
        assert same(model.state_dict(), whole.state_dict())
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_best_weights_that_are_damaged_are_not_replaced_by_others(start: PreTrainedModel, tmp_path: Path) -> None:
    how = settings(early_stopping_patience=3)
    _, fitted = train(start, tmp_path / "whole", how)
    assert fitted.chose is not None
    with pytest.raises(Killed):
        train(start, tmp_path / "broken", how, kill_at=fitted.steps)
    checkpoints = Checkpoints(tmp_path / "broken" / "checkpoints")
    state = TrainState(copy.deepcopy(start), how)
    state.go_back(checkpoints, step=fitted.chose.step)
    tensors = tmp_path / "broken" / "checkpoints" / f"step-{fitted.chose.step:06d}" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    with pytest.raises(DiskError, match=rf"best weights, those of step {fitted.chose.step}, are lost: .*is damaged"):
        state.go_back(checkpoints, step=fitted.chose.step)


def test_a_score_that_is_no_number_stops_training(start: PreTrainedModel, tmp_path: Path) -> None:
    state: Any = SimpleNamespace(step=7, scores=[(3, 1.0)])
    with pytest.raises(GuardStopped, match="step 7: validation nats_per_token is nan"):
        Choice(settings(), state).weigh({"nats_per_token": Score(value=math.nan, n=1)}, of="training")


def as_hugging_face(scores: Sequence[float], *, larger: bool, patience: int, threshold: float) -> tuple[int, int]:
    """(validations until training stops, the best of them), by transformers' own callback and trainer rules."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

    callback = EarlyStoppingCallback(early_stopping_patience=patience, early_stopping_threshold=threshold)
    arguments: Any = SimpleNamespace(greater_is_better=larger, metric_for_best_model="m")
    state, control, best = TrainerState(), TrainerControl(), 0
    for number, score in enumerate(scores):
        callback.on_evaluate(arguments, state, control, metrics={"eval_m": score})
        if state.best_metric is None or (score > state.best_metric if larger else score < state.best_metric):
            state.best_metric, best = score, number
        if control.should_training_stop:
            return number + 1, best
    return len(scores), best


@given(
    scores=st.lists(st.integers(0, 6).map(lambda n: n / 4), min_size=1, max_size=12),
    metric=st.sampled_from(["nats_per_token", "pass_rate"]),
    patience=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.25, 0.6]),
)
def test_patience_and_best_are_those_of_hugging_face(
    scores: list[float], metric: Any, patience: int, threshold: float
) -> None:
    best = Best(metric=metric, early_stopping_patience=patience, early_stopping_threshold=threshold)
    state: Any = SimpleNamespace(step=0, scores=[])
    choice = Choice(TrainSettings(method=SFT, validations=100, best=best, predict_with_generate=True), state)
    improved = 0
    for number, score in enumerate(scores):
        state.step = number
        if choice.weigh({metric: Score(value=score, n=1)}, of="training") is not None:
            improved = number
        if choice.over(10_000):
            break
    expected = as_hugging_face(scores, larger=metric == "pass_rate", patience=patience, threshold=threshold)
    assert (state.step + 1, improved) == expected


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "averaged": (
        lambda: TrainSettings(method=SFT, average=0.5, best=Best(metric="accuracy")),
        "'average' is the mean of the last steps and 'best' takes one of them",
    ),
    "patient for ever": (
        lambda: TrainSettings(method=SFT, validations=4, best=Best(metric="accuracy", early_stopping_patience=3)),
        "3 never stops anything in 4 'validations': take at least 5",
    ),
    "unread": (lambda: Best(metric="kd", early_stopping_threshold=0.1), "is read with 'early_stopping_patience' alone"),
    "no teacher": (lambda: TrainSettings(best=Best(metric="kd")), "'method' sft has none to read"),
    "no answers": (lambda: TrainSettings(best=Best(metric="pass_rate")), "set 'predict_with_generate' to true"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_makes_no_sense_is_refused_in_one_sentence(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ValidationError) as refused:
        make()
    (error,) = refused.value.errors()
    assert said in error["msg"]


def test_what_is_not_scored_of_a_task_chooses_nothing(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="accuracy is not scored here: take one of nats_per_token, kd, pass_rate"):
        recipe_in(tmp_path, tiny_model, train={"best": {"metric": "accuracy"}})
    with pytest.raises(InputError, match="kd is not scored here: take one of accuracy, agreement, kl_to_teacher"):
        choices_by_hand.recipe_in(tmp_path, train={"method": {"kind": "logit_kd"}, "best": {"metric": "kd"}})


def test_all_answers_to_a_question_are_held_back_together() -> None:
    some = [row for row in rows(50, seed=2) for _ in range(3)]
    learnt, held = apart(some)
    assert len(held) == 9 and len(learnt) == 141
    assert not {row.prefix for row in learnt} & {row.prefix for row in held}
    assert apart(some[:30]) == (some[:30], some[:3])


def test_a_student_is_chosen_by_the_answers_that_it_writes(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = {"metric": "pass_rate", "early_stopping_patience": 2}
    how = {"epochs": 30, "batch_size": 8, "learning_rate": 0.01, "validations": 10}
    recipe_in(tmp_path, tiny_model, train={**how, "best": best, "predict_with_generate": True})
    run = tmp_path / "run"
    for verb in ("generate", "verify", "train", "report"):
        assert execute([verb, str(tmp_path / "recipe.yaml"), "--run", str(run)]) == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = {row["step"]: row["validation_pass_rate"] for row in steps if "validation_pass_rate" in row}
    chose = json.loads((run / "arms" / "student" / "trained.json").read_text())["chose"]
    assert steps[-1]["stopped_early"] and steps[-1]["best_step"] == chose["step"]
    assert max(curve.values()) == curve[chose["step"]] == chose["score"] and len(curve) < 10
    said = capsys.readouterr().out
    assert "tokens/s" in said and "stopped early after" in said and "\x1b" not in said  # no terminal, no colours
    said = f"the weights of step {chose['step']} were kept"
    assert said in (run / "model" / "README.md").read_text() and said in (run / "report.html").read_text()


def test_answers_that_only_a_judge_could_mark_are_not_asked_for(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_in(tmp_path, tiny_model, train={"predict_with_generate": True})
    words = ["check", str(tmp_path / "recipe.yaml"), "--set", "verify.checks=[{kind: majority}]"]
    assert execute(words) == 2
    assert "needs no other answer, no judge and no reward model" in capsys.readouterr().err
