"""A student that learns to write: supervised fine-tuning on whole answers, by the loop that every arm goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.data_recipe import DataRecipe
from potstill.errors import InputError
from potstill.generate.told import told_first
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.models.lora import adapt, merged
from potstill.models.student import freeze
from potstill.records import Message, Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.student_recipe import ScoredBy
from potstill.text.tokens import Codec
from potstill.train.batch import Row, Whole, collate
from potstill.train.loop import Fitted, Job, fit
from potstill.train.methods import token_nats
from potstill.train.teaching import LiveTeacher
from potstill.train.untaught import Untaught, save

_HELD_BACK = 20  # one conversation in so many shows how learning goes, and is not learnt


def train_student(
    recipe: DataRecipe,
    start: Untaught,
    conversations: Sequence[Sequence[Message]],
    *,
    place: Path,
    fingerprint: str,
    watch: Watch,
) -> Fitted:
    """Fine-tune on the conversations' last turns and save `place`/model; goes on from a checkpoint if there is one."""
    learner, model, codec = start.learner, start.model, start.codec
    adapted = None if learner.lora is None else adapt(model, learner.lora, seed=recipe.seed)
    freeze(model, embeddings=learner.freeze_embeddings, layers=learner.freeze_layers)
    rows = conversation_rows(conversations, codec, reasoning=recipe.train.learn == "reasoning and answer")
    teach = None
    if recipe.scored_by is not None:
        rows, teach = scored_rows(recipe, recipe.scored_by, conversations, codec)
    held = rows[::_HELD_BACK] if len(rows) > _HELD_BACK else rows[:1]
    job = Job(
        arm="student",
        rows=[row for i, row in enumerate(rows) if i % _HELD_BACK or len(rows) <= _HELD_BACK],
        choices=(),
        method=recipe.train.method,
        teach=teach,
        settings=recipe.train,
        seed=recipe.seed,
        fingerprint=f"{fingerprint} of {start.layers}",
        checkpoints=Checkpoints(place / "checkpoints" / "student"),
        metrics=Metrics(place / "metrics.jsonl"),
        validate=lambda student: {"nats_a_token": held_back_nats(student, held)},
        watch=watch,
    )
    fitted = fit(model, job)
    start = start if adapted is None else replace(start, model=merged(adapted))
    save(start, longest=max(len(row.target) for row in rows), to=place / "model")
    job.checkpoints.clear()
    return fitted


def conversation_rows(conversations: Sequence[Sequence[Message]], codec: Codec, *, reasoning: bool) -> list[Row]:
    """Tokens of the student's own template. A conversation that spells a control token is left out: it would teach the
    model to write one. Raises InputError where none is left."""
    return [row for row, _ in _rows(conversations, codec, reasoning=reasoning)]


def _rows(
    conversations: Sequence[Sequence[Message]], codec: Codec, *, reasoning: bool
) -> list[tuple[Row, Sequence[Message]]]:
    """With what was asked, as messages."""
    rows: list[tuple[Row, Sequence[Message]]] = []
    for *asked, said in conversations:
        if codec.control_token([*asked, said]) is None:
            turn = said if reasoning else replace(said, reasoning_content=None)
            rows.append((Row(prefix=codec.prefix(asked), target=codec.turn(asked, turn)), asked))
    if not rows:
        raise InputError("there is no answer to learn", way_out="see `potstill verify` for what became of them")
    return rows


def scored_rows(
    recipe: DataRecipe, scorer: ScoredBy, conversations: Sequence[Sequence[Message]], codec: Codec
) -> tuple[list[Row], LiveTeacher]:
    """The rows with their prompts as the teacher reads them (told what it was told when it wrote), and the teacher.

    Raises InputError where the two models do not share their tokens: a token's id must mean the same to both.
    """
    teacher = load(locate(scorer.model), revision=scorer.revision)
    theirs = codec_of(teacher.folder, scorer.template, name="teacher")
    require_same_tokens(theirs, codec)
    told = told_first(recipe.teacher)
    alike = theirs.end_of_turn("x") == codec.end_of_turn("x")
    reasoning = recipe.train.learn == "reasoning and answer"
    rows = [
        replace(row, teacher_prefix=theirs.prefix([*told, *asked]), ends_alike=alike)
        for row, asked in _rows(conversations, codec, reasoning=reasoning)
    ]
    return rows, LiveTeacher(teacher.model.requires_grad_(False), [row.teacher_prefix for row in rows])


def require_same_tokens(teacher: Codec, student: Codec) -> None:
    """Raises InputError where a token of one is another or none for the other."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    strange = next((token for token, number in ours.items() if theirs.get(token) != number), None)
    if strange is not None:
        raise InputError(
            f"teacher and student do not share their tokens: {strange!r} is {ours[strange]} for the student and "
            f"{theirs.get(strange, 'nothing')} for the teacher",
            way_out="learn by 'sft', or take two models of one family",
        )


@torch.inference_mode()
def held_back_nats(model: PreTrainedModel, rows: Sequence[Row]) -> Score:
    """Mean cross-entropy of a token of the answers held back."""
    total, count = 0.0, 0
    for begin in range(0, len(rows), 8):
        some = rows[begin : begin + 8]
        batch = collate(some, (), whole=Whole.of(some), device=model.device)
        hidden_RD = hidden_rows(model, batch.documents, batch.at_R)
        total += token_nats(model, hidden_RD, batch.target_N).sum().item()
        count += len(batch.target_N)
    return Score(value=total / count, n=count)
