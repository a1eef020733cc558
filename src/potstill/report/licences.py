"""Which licences a run was made under, and the duties that go with its data and its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import LicenceRefused
from potstill.licences import check_licence
from potstill.recipe import Recipe
from potstill.recipe.values import public_name
from potstill.report.gather import RunReport
from potstill.report.tables import Cell, Table


@dataclass(frozen=True, slots=True)
class LicencesPart:
    table: Table
    rows_carry: str
    duties: Sequence[str]


def licences_part(report: RunReport) -> LicencesPart:
    """Of the run's recipe, and of what the arms name beside it."""
    recipe = report.recipe
    named = dict(recipe.licensed)
    places = dict.fromkeys(named, recipe)
    for arm, theirs in report.recipes.items():
        other = {key: licence for key, licence in theirs.licensed.items() if recipe.licensed.get(key) != licence}
        named |= {f"arms.{arm}.{key}": licence for key, licence in other.items()}
        places |= {f"arms.{arm}.{key}": theirs for key in other}
    rows = [
        [
            Cell(key.removesuffix(".licence")),
            Cell(_which(places[key], key), _sha256(report) if key == "teacher.licence" else "", "wrap"),
            Cell(licence, kind="wrap"),
        ]
        for key, licence in named.items()
    ]
    table = Table(columns=[Cell("What"), Cell("Which"), Cell("Licence")], rows=rows)
    return LicencesPart(table, recipe.licences, duties_of(named))


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
    """The public name of what stands at that place of the recipe, which may begin with an arm's name."""
    node: Any = recipe
    path = key.split(".")[:-1]
    for part in path[2:] if path[0] == "arms" else path:
        node = node[int(part)] if isinstance(node, tuple) else getattr(node, part)
    node = getattr(node, "seeds", node)
    named = (getattr(node, name, None) for name in ("model", "start", "source", "task"))
    found = next((name for name in named if name), "")
    revision = getattr(node, "revision", None)
    return public_name(found) + (f", revision {revision}" if revision else "")


def _sha256(report: RunReport) -> str:
    return f"SHA-256 of its weights: {report.teacher_hash}" if report.teacher_hash else ""
