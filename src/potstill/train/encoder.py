"""An encoder classifier that learns the teacher's distribution over the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.models.encoder import asked_text, initial_encoder
from potstill.recipe import Arm, Recipe
from potstill.recipe.methods import LogitKd
from potstill.recipe.student import Encoder
from potstill.recipe.task import Choice
from potstill.recipe.train import Loop
from potstill.records import Example
from potstill.train.classifiers import Distillation, classification, train_classifier
from potstill.train.handed import Handed, Outcome
from potstill.train.methods import divergence_of
from potstill.train.traces import ArmFiles
from potstill.train.validation import held_out

_LEAST_P = 1e-12


def train_encoder(arm: Arm, examples: Sequence[Example], files: ArmFiles, handed: Handed) -> Outcome:
    """Train from wherever it stands and save the model folder; its checkpoints are then dropped."""
    recipe, encoder, task = arm.recipe, arm.student, arm.recipe.task
    assert isinstance(encoder, Encoder) and isinstance(task, Choice)
    classifier = initial_encoder(encoder, task.choices, seed=recipe.seed)
    learned, held = held_out(recipe, examples)
    traces = files.traces(recipe.train)
    objective = classification(
        classifier.model,
        _soft_targets(recipe, learned),
        classifier.encode([asked_text(example.messages[:-1]) for example in learned]),
        torch.tensor([task.choices.index(example.messages[-1].content) for example in learned]),
        distillation(recipe),
    )
    with traces.metrics:
        fitted = train_classifier(classifier.model, objective, validate=handed.validator(arm, held), traces=traces)
    classifier.save(files.model)
    traces.checkpoints.clear()
    return Outcome(examples=len(learned), fitted=fitted)


def _soft_targets(recipe: Recipe, examples: Sequence[Example]) -> Tensor | None:
    """ln p of the teacher, calibrated; none where the method is to learn its hard labels."""
    if not isinstance(recipe.train.method, LogitKd):
        return None
    p_NC = np.exp(np.array([example.choice_logprobs for example in examples]))
    return torch.from_numpy(np.log(np.maximum(p_NC, _LEAST_P))).float()


def distillation(recipe: Recipe) -> Distillation:
    """The arm's settings and method, as those of a classifier."""
    method, settings = recipe.train.method, recipe.train
    values: dict[str, Any] = {name: getattr(settings, name) for name in Loop.model_fields} | {"seed": recipe.seed}
    if isinstance(method, LogitKd):
        values |= {"temperature": method.temperature, "alpha": method.alpha, "divergence": divergence_of(method)}
    return Distillation.model_validate(values)
