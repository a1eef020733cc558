"""A student that learns to write: supervised fine-tuning on whole answers, by the loop that every arm goes through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.engines.rollout_server import ServedRollouts
from potstill.errors import InputError
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype, device
from potstill.models.lora import adapt, merged
from potstill.models.student import freeze
from potstill.recipe.methods import LogitKd
from potstill.recipe.on_policy import OnPolicy
from potstill.recipe.whole import Recipe
from potstill.records import Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.files import write_atomic
from potstill.store.metrics import Metrics
from potstill.store.sinks import sinks_of
from potstill.train.advantages import Reward, judged, verdicts_by
from potstill.train.batch import Row, Whole, collate
from potstill.train.loop import Fitted, Job, Validate, fit
from potstill.train.methods import token_nats
from potstill.train.own_answers import OwnAnswers, WritesThere, teacher_mix
from potstill.train.own_text import own_text
from potstill.train.rows import Weighted, conversation_rows
from potstill.train.scored import ScoringModel, scored_rows, teacher_of
from potstill.train.teaching import LiveTeacher, Teach
from potstill.train.untaught import Untaught, save
from potstill.train.validation import Quiz, apart, distance
from potstill.train.world import ALONE, World

_OWN = ".potstill-writer"
"""Marks a folder that a server takes the student's weights from: it is replaced whole when a training starts."""


def train_student(  # noqa: PLR0913
    recipe: Recipe,
    start: Untaught,
    conversations: Sequence[Weighted],
    *,
    place: Path,
    fingerprint: str,
    reward: Reward | None = None,
    watch: Watch,
    world: World = ALONE,
) -> Fitted:
    """Fine-tune on the conversations' last turns and save `place`/model; goes on from a checkpoint if there is one.
    `reward` goes with `train.on_policy.reward` and `predict_with_generate`."""
    learner, model, codec = start.learner, start.model, start.codec
    adapted = None if learner.lora is None else adapt(model, learner.lora, seed=recipe.seed)
    freeze(model, embeddings=learner.keeps_embeddings, layers=learner.freeze_layers)
    rows, teach = _rows_and_teacher(recipe, start, conversations, watch, world)
    learnt, held = apart(rows)
    longest_answer = max(len(row.target) for row in rows)
    ask = None if reward is None else verdicts_by(reward, codec, [asked for (*asked, _), _ in conversations])
    own, judge, scores = None, None, teach
    if (how := recipe.train.on_policy) is not None and teach is not None:
        own = _own_answers(how, start, rows, teach, place=place, seed=recipe.seed)
        judge, teach = judged(recipe.train, how, teach, ask)
    quiz = None
    if recipe.train.predict_with_generate and ask is not None:
        quiz = Quiz.of(held, ask, end_of_turn=codec.end_of_turn("x"), max_tokens=longest_answer + 8)
    sinks = sinks_of(recipe.train, place) if world.first else ()
    job = Job(
        arm="student",
        rows=learnt,
        choices=(),
        method=recipe.train.method,
        teach=teach,
        own=own,
        judge=judge,
        own_guards=how.guards if how else None,
        settings=recipe.train,
        seed=recipe.seed,
        fingerprint=f"{fingerprint} of {start.layers}",
        checkpoints=Checkpoints(place / "checkpoints" / "student", better=recipe.train.better),
        metrics=Metrics(place / "metrics.jsonl", sinks, writes=world.first),
        validate=_validation(recipe, held, scores, quiz, world),
        watch=watch,
        spell=codec.text,
        world=world,
    )
    (place / "rollouts.json").unlink(missing_ok=True)  # of an earlier student
    with job.metrics:
        fitted = fit(model, job)
    if not world.first:
        return fitted
    if how is not None and isinstance(scores, LiveTeacher):
        said = own_text(model, held, teacher=scores, how=how, codec=codec, seed=recipe.seed)
        write_atomic(place / "rollouts.json", json.dumps(said, ensure_ascii=False))
    start = start if adapted is None else replace(start, model=merged(adapted))
    save(start, longest=longest_answer, to=place / "model")
    job.checkpoints.clear()
    return fitted


def _rows_and_teacher(
    recipe: Recipe, start: Untaught, conversations: Sequence[Weighted], watch: Watch, world: World
) -> tuple[list[Row], Teach | None]:
    """The conversations in tokens, and who scores them, if anybody."""
    if recipe.scored_by is None:
        reasoning = recipe.train.learn == "reasoning and answer"
        return conversation_rows(conversations, start.codec, reasoning=reasoning), None
    scorer = ScoringModel.of(recipe.scored_by)
    rows = scored_rows(recipe, scorer, conversations, start.codec)
    return rows, teacher_of(recipe, scorer, rows, start.model, watch, world)


def _own_answers(
    how: OnPolicy, start: Untaught, rows: Sequence[Row], teach: Teach, *, place: Path, seed: int
) -> OwnAnswers:
    """What the student writes itself to the prompts of the rows, and where."""
    codec, model = start.codec, start.model.to(device())  # pyright: ignore[reportArgumentType]
    end, vocabulary = codec.end_of_turn("x"), codec.vocabulary
    if how.engine is None:
        return OwnAnswers.here(
            model,
            how,
            end_of_turn=end,
            longest_prefix=max(len(row.prefix) for row in rows),
            vocabulary=vocabulary,
            teacher=teacher_mix(how, teach, rows),
            seed=seed,
        )
    folder = Path(how.engine.weights_folder or place / "writer")
    if how.engine.weights_folder is not None:
        _require_own(folder)
    save(start, longest=how.max_tokens, to=folder)
    (folder / _OWN).touch()
    server = ServedRollouts(how.engine, end_of_turn=end, vocabulary=vocabulary)
    server.take_weights(folder)  # that it can is known before the first step
    return OwnAnswers(how, WritesThere(model, server, folder), seed=seed)


def _require_own(folder: Path) -> None:
    """Raises InputError for a folder that would be replaced although it holds something else than an older writer."""
    holds_something = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if holds_something and not (folder / _OWN).is_file():
        raise InputError(
            f"train.on_policy.engine.weights_folder is '{folder}', which holds something else and would be replaced",
            way_out="name a folder that does not exist yet, such as one inside it",
        )


def _validation(recipe: Recipe, held: Sequence[Row], scores: Teach | None, quiz: Quiz | None, world: World) -> Validate:
    """What is scored while the student trains: nats per token; with a teacher that scores, the method's own divergence;
    with a quiz, the share of right answers."""

    def validate(student: PreTrainedModel) -> dict[str, Score]:
        found = {"nats_per_token": held_back_nats(student, held, autocast=world.size > 1)}
        if scores is not None and isinstance(recipe.train.method, LogitKd):
            found["kd"] = distance(student, held, recipe.train.method, scores)
        return found if quiz is None else {**found, "pass_rate": quiz(student)}

    return validate


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
