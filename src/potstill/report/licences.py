"""Which licences a run was made under, and the duties that go with its data and its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import LicenceRefused
from potstill.licences import check_licence
from potstill.recipe import Recipe
from potstill.recipe.values import public_name
from potstill.report.gather import RunReport


def licences(report: RunReport) -> dict[str, tuple[str, str]]:
    """By its key in the recipe the licence and public name of everything: of the run's recipe, and of what the arms
    name beside it."""
    recipe = report.recipe
    found = {key: (licence, _which(recipe, key)) for key, licence in recipe.licensed.items()}
    for arm, theirs in report.recipes.items():
        for key, licence in theirs.licensed.items():
            if recipe.licensed.get(key) != licence:
                found[f"arms.{arm}.{key}"] = (licence, _which(theirs, key))
    return found


def duties(report: RunReport) -> list[str]:
    return duties_of({key: licence for key, (licence, _) in licences(report).items()})


def duties_of(licensed: Mapping[str, str]) -> list[str]:
    """Each with where it comes from."""
    duties: list[str] = []
    for key, licence in licensed.items():
        try:
            policy = check_licence(licence, key=key)
        except LicenceRefused as refused:  # what the run was made under before the policy knew better
            duties.append(str(refused))
            continue
        if policy.duties:
            duties.append(f"{key.removesuffix('.licence')} ({licence}): {policy.duties}")
    return duties


def _which(recipe: Recipe, key: str) -> str:
    """The public name of what stands at that place of the recipe."""
    node: Any = recipe
    for part in key.split(".")[:-1]:
        node = node[int(part)] if isinstance(node, tuple) else getattr(node, part)
    node = getattr(node, "seeds", node)
    named = (getattr(node, name, None) for name in ("model", "start", "source", "task"))
    found = next((name for name in named if name), "")
    revision = getattr(node, "revision", None)
    return public_name(found) + (f", revision {revision}" if revision else "")
