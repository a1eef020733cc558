"""A student that learns to write: supervised fine-tuning on whole answers, by the loop that every arm goes through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.data_recipe import DataRecipe
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.models.save import save_model
from potstill.models.student import first_layers, freeze
from potstill.records import Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.student_recipe import Learner
from potstill.text.tokens import Codec
from potstill.train.batch import Row, Whole, collate
from potstill.train.loop import Fitted, Job, fit
from potstill.train.methods import token_nats
from potstill.train.rows import Weighted, conversation_rows
from potstill.train.scored import scored_rows, teacher_of

_HELD_BACK = 20  # one conversation in so many shows how learning goes, and is not learnt


def train_student(
    recipe: DataRecipe,
    learner: Learner,
    conversations: Sequence[Weighted],
    *,
    place: Path,
    fingerprint: str,
    watch: Watch,
) -> Fitted:
    """Fine-tune on the conversations' last turns and save `place`/model; goes on from a checkpoint if there is one."""
    model, codec, folder = untaught(learner)
    freeze(model, embeddings=learner.freeze_embeddings, layers=learner.freeze_layers)
    rows = conversation_rows(conversations, codec, reasoning=recipe.train.learn == "reasoning and answer")
    teach = None
    if recipe.scored_by is not None:
        rows = scored_rows(recipe, recipe.scored_by, conversations, codec)
        teach = teacher_of(recipe, recipe.scored_by, rows, model, watch)
    held = rows[::_HELD_BACK] if len(rows) > _HELD_BACK else rows[:1]
    job = Job(
        arm="student",
        rows=[row for i, row in enumerate(rows) if i % _HELD_BACK or len(rows) <= _HELD_BACK],
        choices=(),
        method=recipe.train.method,
        teach=teach,
        settings=recipe.train,
        seed=recipe.seed,
        fingerprint=fingerprint,
        checkpoints=Checkpoints(place / "checkpoints" / "student"),
        metrics=Metrics(place / "metrics.jsonl"),
        validate=lambda student: {"nats_a_token": held_back_nats(student, held)},
        watch=watch,
    )
    fitted = fit(model, job)
    save(model, codec, folder, longest=max(len(row.target) for row in rows), to=place / "model")
    job.checkpoints.clear()
    return fitted


def untaught(learner: Learner) -> tuple[PreTrainedModel, Codec, Path]:
    """The student before its first step, what it reads and writes, and the folder its tokenizer comes from."""
    start = load(locate(learner.start), revision=learner.revision)
    return (
        first_layers(start.model, learner.layers),
        codec_of(start.folder, learner.template, name="student"),
        start.folder,
    )


def save(model: PreTrainedModel, codec: Codec, folder: Path, *, longest: int, to: Path) -> None:
    """A model folder that writes at most `longest` tokens and a few."""
    end = codec.end_of_turn("x")
    save_model(model, codec, tokenizer_from=folder, end_of_turn=end, max_new_tokens=longest + 8, to=to)


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
