"""A student that learns to write: supervised fine-tuning on whole answers, by the loop that every arm goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.data_recipe import DataRecipe
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype, device
from potstill.models.lora import adapt, merged
from potstill.models.student import freeze
from potstill.records import Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.train.batch import Row, Whole, collate
from potstill.train.loop import Fitted, Job, fit
from potstill.train.methods import token_nats
from potstill.train.own_answers import OwnAnswers
from potstill.train.rows import Weighted, conversation_rows
from potstill.train.scored import ScoringModel, scored_rows, teacher_of
from potstill.train.untaught import Untaught, save
from potstill.train.world import ALONE, World

_HELD_BACK = 20  # one conversation in so many shows how learning goes, and is not learnt


def train_student(  # noqa: PLR0913
    recipe: DataRecipe,
    start: Untaught,
    conversations: Sequence[Weighted],
    *,
    place: Path,
    fingerprint: str,
    watch: Watch,
    world: World = ALONE,
) -> Fitted:
    """Fine-tune on the conversations' last turns and save `place`/model; goes on from a checkpoint if there is one."""
    learner, model, codec = start.learner, start.model, start.codec
    adapted = None if learner.lora is None else adapt(model, learner.lora, seed=recipe.seed)
    freeze(model, embeddings=learner.freeze_embeddings, layers=learner.freeze_layers)
    rows = conversation_rows(conversations, codec, reasoning=recipe.train.learn == "reasoning and answer")
    teach = None
    if recipe.scored_by is not None:
        scorer = ScoringModel.of(recipe.scored_by)
        rows = scored_rows(recipe, scorer, conversations, codec)
        teach = teacher_of(recipe, scorer, rows, model, watch, world)
    held = rows[::_HELD_BACK] if len(rows) > _HELD_BACK else rows[:1]
    own = None
    if (how := recipe.train.on_policy) is not None:
        longest = max(len(row.prefix) for row in rows)
        end = codec.end_of_turn("x")
        own = OwnAnswers(model.to(device()), how, end_of_turn=end, longest_prefix=longest, seed=recipe.seed)  # pyright: ignore[reportArgumentType]
    job = Job(
        arm="student",
        rows=[row for i, row in enumerate(rows) if i % _HELD_BACK or len(rows) <= _HELD_BACK],
        choices=(),
        method=recipe.train.method,
        teach=teach,
        write=own,
        settings=recipe.train,
        seed=recipe.seed,
        fingerprint=f"{fingerprint} of {start.layers}",
        checkpoints=Checkpoints(place / "checkpoints" / "student"),
        metrics=Metrics(place / "metrics.jsonl" if world.first else None),
        validate=lambda student: {"nats_a_token": held_back_nats(student, held, autocast=world.size > 1)},
        watch=watch,
        world=world,
    )
    fitted = fit(model, job)
    if not world.first:
        return fitted
    start = start if adapted is None else replace(start, model=merged(adapted))
    save(start, longest=max(len(row.target) for row in rows), to=place / "model")
    job.checkpoints.clear()
    return fitted


@torch.no_grad()
def held_back_nats(model: PreTrainedModel, rows: Sequence[Row], *, autocast: bool = False) -> Score:
    """Mean cross-entropy of a token of the answers held back. `autocast`: for layers that come in half precision."""
    total, count = 0.0, 0
    for begin in range(0, len(rows), 8):
        some = rows[begin : begin + 8]
        batch = collate(some, (), whole=Whole.of(some), device=model.device)
        half = autocast and compute_dtype() == torch.bfloat16
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
            hidden_RD = hidden_rows(model, batch.documents, batch.at_R)
        total += token_nats(model, hidden_RD, batch.target_N).sum().item()
        count += len(batch.target_N)
    return Score(value=total / count, n=count)
