"""A student that learns to write: supervised fine-tuning, soft targets or a policy gradient on whole answers, by the
loop that every arm goes through."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.engines.rollout_server import ServedRollouts
from potstill.errors import InputError
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype, device
from potstill.recipe import Arm, Recipe
from potstill.recipe.methods import LogitKd
from potstill.recipe.on_policy import OnPolicy
from potstill.recipe.student import Student
from potstill.records import Example, Score
from potstill.store.files import write_atomic
from potstill.train.advantages import Verdicts, judged, verdicts_by
from potstill.train.batch import Row, Whole, collate
from potstill.train.data import Data, OnPolicyData
from potstill.train.handed import Handed, Outcome
from potstill.train.initial import InitialStudent, adapted, initial_student, save
from potstill.train.language import TokenObjective
from potstill.train.loop import Fitted, Training, Validate, fit
from potstill.train.methods import token_nats
from potstill.train.own_text import own_text
from potstill.train.rollout_buffer import RolloutBuffer, WritesThere, teacher_mix
from potstill.train.room import fitting
from potstill.train.rows import example_rows
from potstill.train.scored import ScoringModel, scored_rows, teacher_of
from potstill.train.teaching import LiveTeacher, Teach
from potstill.train.traces import ArmFiles
from potstill.train.validation import HeldOutPrompts, apart, distance
from potstill.train.world import World

_OWN = ".potstill-writer"
"""Marks a folder that a server takes the student's weights from: it is replaced whole when a training starts."""


@dataclass(frozen=True, slots=True)
class _Task:
    """The kept answers in tokens, learnt and held out; who scores them, and what the checks say, if anybody does."""

    recipe: Recipe
    start: InitialStudent
    rows: Sequence[Row]
    teach: Teach | None
    verdicts: Verdicts | None
    validation: Set[str]

    @property
    def learnt(self) -> list[Row]:
        return apart(self.rows, self.validation)[0]

    @property
    def held(self) -> list[Row]:
        return apart(self.rows, self.validation)[1]

    @property
    def longest_answer(self) -> int:
        return max(len(row.target) for row in self.rows)


def train_on_texts(
    arm: Arm,
    examples: Sequence[Example],
    files: ArmFiles,
    handed: Handed,
    layers: Sequence[int] | None,
    world: World,
) -> Outcome:
    """Fine-tune on the examples' last turns and save the model folder; goes on from a checkpoint if there is one."""
    recipe, student = arm.recipe, arm.student
    assert isinstance(student, Student)
    sample = [example.messages for example in examples]
    start = initial_student(student, sample, seed=recipe.seed, layers=layers, loads_on=world.loads_on)
    asks = recipe.train.predict_with_generate or (recipe.train.on_policy and recipe.train.on_policy.reward)
    with handed.rewarding(arm) if asks and world.first else nullcontext() as reward:
        adapters = adapted(start, files, seed=recipe.seed)
        left_out = Counter[str]()
        rows, teach = _rows_and_teacher(recipe, start, examples, files, world, left_out)
        verdicts = None if reward is None else verdicts_by(reward, start.codec)
        validation = {example.prompt_id for example in examples if example.split == "validation"}
        task = _Task(recipe, start, rows, teach, verdicts, validation)
        fitted = _fit(task, files, world)
        if world.first:
            _write_own_text(task, files)
    if world.first:
        save(start, longest=task.longest_answer, to=files.model, adapters=adapters)
        files.traces(recipe.train).checkpoints.clear()
    return Outcome(examples=len(task.learnt), fitted=fitted, layers=start.layers, of=start.of, left_out=dict(left_out))


def _fit(task: _Task, files: ArmFiles, world: World) -> Fitted:
    recipe = task.recipe
    files = replace(files, fingerprint=f"{files.fingerprint} of {task.start.layers}")
    traces = files.traces(recipe.train, writes=world.first)
    data, teach = _data(task, files)
    training = Training(
        data=data,
        objective=TokenObjective(method=recipe.train.method, teach=teach, spell=task.start.codec.text),
        settings=recipe.train,
        seed=recipe.seed,
        validate=_validation(task, world),
        traces=traces,
        world=world,
    )
    files.rollouts.unlink(missing_ok=True)  # of an earlier student
    with traces.metrics:
        return fit(task.start.model, training)


def _rows_and_teacher(
    recipe: Recipe,
    start: InitialStudent,
    examples: Sequence[Example],
    files: ArmFiles,
    world: World,
    left_out: Counter[str],
) -> tuple[list[Row], Teach | None]:
    """The examples in tokens, and who scores them, if anybody."""
    scorer = None if recipe.scored_by is None else ScoringModel.of(recipe.scored_by)
    if scorer is None:
        reasoning = recipe.train.learn == "reasoning and answer"
        rows = example_rows(examples, start.codec, reasoning=reasoning, left_out=left_out)
    else:
        rows = scored_rows(recipe, scorer, examples, start.codec, left_out)
    own = recipe.train.on_policy
    rows = fitting(rows, start.model, left_out, scorer=scorer, own=own.max_tokens if own else 0)
    files.tell_left_out(left_out, learnt=len(rows))
    if scorer is None:
        return rows, None
    teach = teacher_of(recipe, scorer, rows, start.model, place=files.run.path, watch=files.watch, world=world)
    return rows, teach


def _data(task: _Task, files: ArmFiles) -> tuple[Data[Row], Teach | None]:
    """What is learnt, with the student's own answers where the recipe is on policy, and who scores it while a step is
    taken."""
    train, how = task.recipe.train, task.recipe.train.on_policy
    if how is None or task.teach is None:
        return Data(task.learnt), task.teach
    buffer = _buffer(task, how, task.teach, files)
    judge, teach = judged(train, how, task.teach, task.verdicts)
    return OnPolicyData(task.learnt, buffer=buffer, judge=judge, guards=how.guards), teach


def _buffer(task: _Task, how: OnPolicy, teach: Teach, files: ArmFiles) -> RolloutBuffer:
    """What the student writes itself to the prompts of the rows, and where."""
    start, rows, seed = task.start, task.rows, task.recipe.seed
    codec, model = start.codec, start.model.to(device())  # pyright: ignore[reportArgumentType]
    end, vocabulary = codec.end_of_turn("x"), codec.vocabulary
    if how.engine is None:
        return RolloutBuffer.here(
            model,
            how,
            end_of_turn=end,
            longest_prefix=max(len(row.prefix) for row in rows),
            vocabulary=vocabulary,
            teacher=teacher_mix(how, teach, rows),
            seed=seed,
        )
    folder = Path(how.engine.weights_folder or files.writer)
    if how.engine.weights_folder is not None:
        _require_own(folder)
    save(start, longest=how.max_tokens, to=folder)
    (folder / _OWN).touch()
    server = ServedRollouts(how.engine, end_of_turn=end, vocabulary=vocabulary)
    server.take_weights(folder)  # that it can is known before the first step
    return RolloutBuffer(how, WritesThere(model, server, folder), seed=seed)


def _require_own(folder: Path) -> None:
    """Raises InputError for a folder that would be replaced although it holds something else than an older writer."""
    holds_something = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if holds_something and not (folder / _OWN).is_file():
        raise InputError(
            f"train.on_policy.engine.weights_folder is '{folder}', which holds something else and would be replaced",
            way_out="name a folder that does not exist yet, such as one inside it",
        )


def _validation(task: _Task, world: World) -> Validate[PreTrainedModel]:
    """What is scored while the student trains: nats per token; with a teacher that scores, the method's own divergence;
    with `predict_with_generate`, the share of right answers."""
    train, held, codec = task.recipe.train, task.held, task.start.codec
    prompts = None
    if train.predict_with_generate and task.verdicts is not None:
        longest, end = task.longest_answer + 8, codec.end_of_turn("x")
        prompts = HeldOutPrompts.of(held, task.verdicts, end_of_turn=end, max_tokens=longest)

    def validate(student: PreTrainedModel) -> dict[str, Score]:
        found = {"nats_per_token": held_back_nats(student, held, autocast=world.size > 1)}
        if task.teach is not None and isinstance(train.method, LogitKd):
            found["kd"] = distance(student, held, train.method, task.teach)
        return found if prompts is None else {**found, "pass_rate": prompts(student)}

    return validate


def _write_own_text(task: _Task, files: ArmFiles) -> None:
    """How near a student that learnt on policy is to its teacher on text of its own, where the teacher is at hand."""
    recipe, start = task.recipe, task.start
    if (how := recipe.train.on_policy) is not None and isinstance(task.teach, LiveTeacher):
        said = own_text(start.model, task.held, teacher=task.teach, how=how, codec=start.codec, seed=recipe.seed)
        write_atomic(files.rollouts, json.dumps(said, ensure_ascii=False))


@torch.no_grad()
def held_back_nats(model: PreTrainedModel, rows: Sequence[Row], *, autocast: bool = False) -> Score:
    """Mean cross-entropy of a token of the answers held back. `autocast`: for layers that come in half precision."""
    total, count = 0.0, 0
    half = autocast and compute_dtype() == torch.bfloat16
    for begin in range(0, len(rows), 8):
        some = rows[begin : begin + 8]
        batch = collate(some, (), whole=Whole.of(some), device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
            hidden_RD = hidden_rows(model, batch.documents, batch.at_R)
        total += token_nats(model, hidden_RD, batch.target_N).sum().item()
        count += len(batch.target_N)
    return Score(value=total / count, n=count)
