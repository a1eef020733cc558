"""What a run will do, before it does it: prompts, tokens, time, memory and licences, with no weights loaded.

Tokens are estimated as a quarter of the bytes; time from a matrix product measured on this machine. Both are marked as
estimates; they are there to tell minutes from hours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from potstill.licences import Policy, check_licence
from potstill.models.locate import Facts, check_layers, facts, locate
from potstill.prompts import load_prompts
from potstill.recipe.choices import ChoiceRecipe
from potstill.store.sinks import require_sinks
from potstill.text.template import Template

_BYTES_PER_TOKEN = 4
_SHARE_OF_PEAK = 0.5  # an assumption, not a measurement: what a model reaches of a bare product
_TRAINING_BYTES = 16  # fp32 weight, gradient and two moments
_WEIGHT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One stage: what it does, tokens it reads, estimated seconds and peak bytes (None: not known offline)."""

    stage: str
    what: str
    tokens: int
    seconds: float | None
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    recipe: ChoiceRecipe
    prompts: Mapping[str, int]
    left_out: Mapping[str, int]
    work: tuple[Work, ...]
    teacher: Facts | None
    student_parameters: int | None
    licences: Mapping[str, Policy]


def plan(recipe: ChoiceRecipe) -> Plan:
    """Raises a PotstillError for everything that can be known to be wrong before weights are loaded."""
    licences = {
        f"{what} ({licence})": check_licence(licence, key=f"{what}.licence")
        for what, licence in (
            ("teacher", recipe.teacher.licence),
            ("prompts", recipe.prompts.licence),
            *([("encoder", recipe.encoder.licence)] if recipe.encoder and recipe.encoder.licence else []),
        )
    }
    require_sinks(recipe.train)
    teacher = facts(locate(recipe.teacher.model))
    if recipe.encoder and recipe.encoder.start:
        locate(recipe.encoder.start)
    check_layers(teacher, recipe.student.layers, key="student.layers")
    for name, source in (
        ("teacher", recipe.teacher.template),
        ("student", recipe.student.template),
    ):
        if source is not None:
            Template(source, name=name)
    found = load_prompts(recipe)
    sizes = Counter(p.split for p in found.prompts)
    mean_tokens = sum(len(p.text.encode()) for p in found.prompts) / len(found.prompts) / _BYTES_PER_TOKEN + 8
    return Plan(
        recipe=recipe,
        prompts=dict(sizes),
        left_out=found.left_out,
        work=_work(recipe, teacher, mean_tokens),
        teacher=teacher,
        student_parameters=teacher.with_layers(recipe.student.layers) if teacher else None,
        licences=licences,
    )


def _work(recipe: ChoiceRecipe, teacher: Facts | None, mean_tokens: float) -> tuple[Work, ...]:
    split, settings = recipe.prompts.split, recipe.train
    arms = ["student", *(c for c in ("from_scratch", "hard_labels") if c in recipe.controls)]
    asked = round(split.total * mean_tokens)
    trained = round(split.train * mean_tokens * settings.epochs * len(arms))
    evaluated = round(split.test * mean_tokens * (len(arms) + ("base" in recipe.controls)))
    big = small = rate = None
    if teacher:
        rate = _flops_per_second() * _SHARE_OF_PEAK
        big = teacher.layers * teacher.per_layer
        small = recipe.student.layers * teacher.per_layer
    student_bytes = teacher.with_layers(recipe.student.layers) * _TRAINING_BYTES if teacher else None

    def seconds(flops_per_token: int, tokens: int, parameters: int | None) -> float | None:
        return flops_per_token * tokens * parameters / rate if rate and parameters else None

    return (
        Work(
            stage="generate",
            what=f"{split.total} answers by {recipe.teacher.model}",
            tokens=asked,
            seconds=seconds(2, asked, big),
            memory=teacher.parameters * _WEIGHT_BYTES if teacher else None,
        ),
        Work(
            stage="train",
            what=f"{', '.join(arms)}: up to {split.train} examples x {settings.epochs} epochs",
            tokens=trained,
            seconds=seconds(6, trained, small),
            memory=student_bytes,
        ),
        *_encoder_work(recipe, mean_tokens),
        Work(
            stage="evaluate",
            what=f"{split.test} test prompts x {len(arms) + len(recipe.controls) + (recipe.encoder is not None)} arms",
            tokens=evaluated,
            seconds=seconds(2, evaluated, small),
            memory=teacher.parameters * _WEIGHT_BYTES if teacher else None,
        ),
    )


def _encoder_work(recipe: ChoiceRecipe, mean_tokens: float) -> tuple[Work, ...]:
    if recipe.encoder is None:
        return ()
    examples, epochs = recipe.prompts.split.train, recipe.encoder.epochs
    return (
        Work(
            stage="train",
            what=f"encoder: up to {examples} examples x {epochs} epochs",
            tokens=round(examples * mean_tokens * epochs),
            seconds=None,
            memory=None,
        ),
    )


def _flops_per_second() -> float:
    """What a bare fp32 matrix product reaches here, from a thirtieth of a second of trying."""
    a = np.ones((512, 512), dtype=np.float32)
    np.matmul(a, a)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.03:
        np.matmul(a, a)
        rounds += 1
    return rounds * 2 * 512**3 / (time.perf_counter() - start)
