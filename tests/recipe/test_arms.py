"""Arms change what they name and nothing else; what changes nothing, or too much, is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.errors import InputError
from potstill.recipe import Recipe, arms_of

TEXT: dict[str, Any] = {
    "name": "t",
    "prompts": {"source": "p.jsonl", "licence": "mit", "columns": {"text": "q"}},
    "teacher": {"model": "m", "licence": "mit", "engine": {"kind": "local"}},
    "verify": {"checks": [{"kind": "exact"}]},
    "student": {
        "start": "s",
        "licence": "mit",
        "layers": {"ranked": 3},
        "freeze_layers": 1,
        "lora": {"rank": 2, "alpha": 4},
    },
    "train": {"method": {"kind": "logit_kd", "alpha": 0.5}, "signal": {"kind": "top_k", "k": 8}},
}
SHAPE = {"kind": "encoder", "shape": {}, "tokenizer": "m"}
CHOICE: dict[str, Any] = {
    **TEXT,
    "task": {"kind": "choice", "choices": ["a", "b"]},
    "verify": None,
    "train": {"method": {"kind": "logit_kd"}},
}


def made(values: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**values, **changes}))


def differences(one: Any, other: Any, at: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.get("kind") == other.get("kind"):
        keys = {*one, *other}  # pyright: ignore[reportUnknownVariableType]
        return {d for key in keys for d in differences(one.get(key), other.get(key), f"{at}.{key}")}
    return set() if one == other else {at.removeprefix(".")}


def changed(recipe: Recipe, name: str) -> set[str]:
    arm = next(arm for arm in arms_of(recipe) if arm.name == name)
    found = differences(recipe.model_dump(mode="json"), arm.recipe.model_dump(mode="json"))
    return {key for key in found if key.partition(".")[0] not in ("controls", "arms")}


@pytest.mark.parametrize(
    ("values", "name", "keys"),
    [
        (TEXT, "from_scratch", {"student.weights", "student.layers", "student.freeze_layers", "student.lora"}),
        (TEXT, "sft", {"train.method", "train.signal"}),
        (CHOICE, "from_scratch", {"student.weights", "student.layers", "student.freeze_layers", "student.lora"}),
        (CHOICE, "hard_labels", {"train.method"}),
    ],
)
def test_a_control_changes_one_thing(values: dict[str, Any], name: str, keys: set[str]) -> None:
    assert changed(made(values, controls=[name]), name) == keys


def test_overrides_merge_and_a_student_of_another_kind_replaces_the_section() -> None:
    arms = {
        "wide": {"student.lora": {"rank": 8}},
        "spaced": {"student": {"layers": {"spaced": 2}}},
        "warm": {"train.method.temperature": 2.0, "train.epochs": 1},
        "encoder": {"student": SHAPE},
    }
    recipe = made(CHOICE, arms=arms)
    assert changed(recipe, "wide") == {"student.lora.rank"}
    assert changed(recipe, "spaced") == {"student.layers.spaced", "student.layers.ranked"}
    assert changed(recipe, "warm") == {"train.method.temperature", "train.epochs"}
    assert changed(recipe, "encoder") == {"student"}


def test_the_default_controls_are_those_that_change_something() -> None:
    assert made(TEXT).compared == ("base",)
    assert made(CHOICE).compared == ("base", "from_scratch", "hard_labels", "tfidf")
    assert made(CHOICE, student=SHAPE, train={}).compared == ("base", "tfidf")
    assert [arm.name for arm in arms_of(made(CHOICE, student=SHAPE))] == ["student", "hard_labels"]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"same": {"student.weights": "start"}}, "arms: same changes nothing"),
        ({"prompts": {"prompts.source": "x"}}, "overrides 'prompts'"),
        ({"typo": {"student.layer": 2}}, "arms: typo: unknown key 'layer' in 'student'; did you mean 'layers'?"),
        ({"frozen": {"student.layers": 1}}, "arms: frozen: student"),
    ],
)
def test_an_arm_that_is_none_is_refused_by_name(arms: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        arms_of(made(CHOICE, arms=arms))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"controls": ["sft"]}, "the control 'sft' does not fit 'task.kind' choice"),
        ({"arms": {"teacher": {"train.epochs": 1}}}, "the arm name 'teacher' is taken"),
        (
            {"train": {"signal": {"kind": "top_k"}, "method": {"kind": "logit_kd"}}},
            "'train.signal' is for tasks of kind text",
        ),
        ({"generate": {"n": 4}}, "a model in this process says its distribution itself"),
        ({"train": {"best": {"metric": "kd"}, "method": {"kind": "logit_kd"}}}, "take one of accuracy, agreement"),
    ],
)
def test_what_choices_have_none_of_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(CHOICE, **changes)
    assert said in str(refused.value)
