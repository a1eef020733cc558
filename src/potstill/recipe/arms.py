"""Arms: the recipe with a few values overridden, under `student` and `train` only. Controls are presets of such
overrides that change one thing each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, cast

from pydantic import ValidationError

from potstill.errors import InputError
from potstill.recipe.explain import Origin, explain
from potstill.recipe.student import Encoder, Ranked, Student
from potstill.recipe.whole import Recipe

Overrides = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One student that is trained: `recipe` is the run's with `overrides` applied."""

    name: str
    overrides: Overrides
    recipe: Recipe

    @property
    def student(self) -> Student | Encoder:
        assert self.recipe.student is not None
        return self.recipe.student


def arms_of(recipe: Recipe) -> tuple[Arm, ...]:
    """Every arm that is trained: the student, the controls that train something, the recipe's own arms. Raises
    InputError where one does not make a recipe, or makes the student's once more."""
    if recipe.student is None:
        return ()
    named: dict[str, tuple[str, Overrides]] = {
        name: ("controls", _preset(name, recipe.student))
        for name in recipe.compared
        if name != "base" and name != "tfidf"
    }
    named |= {name: ("arms", changes) for name, changes in recipe.arms.items()}
    others = (_arm(recipe, name, changes, where=f"{key}: {name}") for name, (key, changes) in named.items())
    return (Arm("student", {}, recipe), *others)


def _preset(control: Literal["from_scratch", "hard_labels", "sft"], student: Student | Encoder) -> Overrides:
    match control:
        case "from_scratch":
            return {"student": {"weights": "random", **_none_learned(student)}}
        case "hard_labels":
            return {"train.method.kind": "sft"}
        case "sft":
            unread = {"scored_by": None, "signal": {"kind": "live"}, "signals_folder": None, "on_policy": None}
            return {"train": {"method": {"kind": "sft"}, **unread}}


def _none_learned(student: Student | Encoder) -> Overrides:
    """What builds on weights that have learned something. Ranked layers become as many first ones: the training knows
    which the student took."""
    if isinstance(student, Encoder):
        return {}
    layers = {"layers": student.layers.ranked} if isinstance(student.layers, Ranked) else {}
    return {"freeze_layers": 0, "lora": None, **layers}


def _arm(recipe: Recipe, name: str, overrides: Overrides, *, where: str) -> Arm:
    values: dict[str, Any] = recipe.model_dump(mode="json") | {"arms": {}, "controls": []}
    for dotted, value in overrides.items():
        section, *inside = dotted.split(".")
        if section not in ("student", "train"):
            raise InputError(f"{where} overrides '{section}'", way_out="an arm may change 'student' and 'train' alone")
        given = reduce(lambda inner, key: {key: inner}, reversed(inside), value)
        values[section] = _merged(values[section], given, section=True)
    try:
        made = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise explain(error, Origin(where, {})) from None
    if (made.student, made.train) == (recipe.student, recipe.train):
        raise InputError(f"{where} changes nothing: it is the student once more", way_out="leave it out")
    return Arm(name, overrides, made)


def _merged(before: Any, given: Any, *, section: bool = False) -> Any:
    """A mapping of the same kind, and below a section of the same keys, is merged key by key; anything else replaces
    what is there."""
    if not (isinstance(before, dict) and isinstance(given, Mapping)):
        return given
    there, changes = cast("dict[str, Any]", before), cast("Mapping[str, Any]", given)
    known = section or changes.keys() <= there.keys()
    if not known or changes.get("kind", there.get("kind")) != there.get("kind"):
        return dict(changes)
    return {**there, **{key: _merged(there.get(key), value) for key, value in changes.items()}}
