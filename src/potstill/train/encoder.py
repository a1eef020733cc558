"""The arm `encoder` of a recipe: a classifier that learns the teacher's distribution over the choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import numpy as np
import torch

from potstill.models.encoder import asked_text, untaught_encoder
from potstill.models.load import device, folder_of
from potstill.models.locate import locate
from potstill.recipe.choices import ChoiceRecipe, Encoder
from potstill.recipe.methods import LogitKd, Sft
from potstill.records import Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.examples import read_examples
from potstill.store.ledger import Ledger, Timing
from potstill.store.metrics import Metrics
from potstill.store.run import Run
from potstill.store.sinks import sinks_of
from potstill.train.classifiers import Distillation, Traces, distil_classifier, drawn_from

ARM = "encoder"


def train_encoder(run: Run, ledger: Ledger, *, validate: Callable[[Any], dict[str, Score]], watch: Watch) -> None:
    """Train it on the student's examples from wherever it stands, and save its folder; its checkpoints are then
    dropped."""
    recipe, encoder = run.recipe, run.recipe.encoder
    assert encoder is not None
    choices, examples = recipe.answers.choices, read_examples(run.examples)
    teacher = folder_of(locate(recipe.teacher.model), revision=recipe.teacher.revision)
    with drawn_from(f"encoder/{recipe.seed}", device()):
        classifier = untaught_encoder(encoder, choices, teacher_folder=teacher)
    inputs = classifier.encode([asked_text(e.messages) for e in examples])
    traces = Traces(
        arm=ARM,
        checkpoints=Checkpoints(run.checkpoints(ARM)),
        checkpoint_seconds=recipe.train.checkpoint_seconds,
        metrics=Metrics(run.metrics, sinks_of(recipe.train, run.folder)),
        validate=validate,
        validations=recipe.train.validations,
        watch=watch,
    )
    with traces.metrics:
        taught = distil_classifier(
            classifier.model,
            _soft_targets(recipe, [e.choice_p for e in examples]),
            inputs,
            labels=torch.tensor([choices.index(e.answer) for e in examples]),
            settings=_settings(recipe, encoder),
            traces=traces,
        )
    classifier.save(run.arm_model(ARM))
    tokens = int(inputs["attention_mask"].sum()) * encoder.epochs
    ledger.put_timing(f"train:{ARM}", 0, Timing(len(examples), tokens, taught.seconds))
    traces.checkpoints.clear()


def _soft_targets(recipe: ChoiceRecipe, choice_p_NC: list[tuple[float, ...]]) -> torch.Tensor | None:
    """ln p of the teacher, calibrated; none where the recipe's method is to learn its hard labels."""
    match recipe.train.method:
        case LogitKd():
            return torch.from_numpy(np.log(np.maximum(np.array(choice_p_NC), 1e-12))).float()
        case Sft():
            return None
        case _:
            assert_never(recipe.train.method)


def _settings(recipe: ChoiceRecipe, encoder: Encoder) -> Distillation:
    method, train = recipe.train.method, recipe.train
    soft = isinstance(method, LogitKd)
    return Distillation(
        temperature=method.temperature if soft else 1.0,
        alpha=method.alpha if soft else 1.0,
        epochs=encoder.epochs,
        batch_size=encoder.batch_size,
        learning_rate=encoder.learning_rate,
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        seed=recipe.seed,
    )
