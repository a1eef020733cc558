"""The licence gate: every licence that a recipe names, looked at before anything is asked, loaded or paid for."""

from __future__ import annotations

from potstill.licences.policy import Policy, check_licence
from potstill.recipe import Recipe, arms_of


def gate(recipe: Recipe) -> dict[str, Policy]:
    """What each licence allows, by its key in the recipe. Raises LicenceRefused."""
    return {key: check_licence(licence, key=key) for key, licence in named_licences(recipe).items()}


def named_licences(recipe: Recipe) -> dict[str, str]:
    """Those of the recipe, and what its arms name beside them."""
    named = dict(recipe.licensed)
    for arm in arms_of(recipe):
        theirs = arm.recipe.licensed.items()
        named |= {f"arms.{arm.name}.{key}": one for key, one in theirs if recipe.licensed.get(key) != one}
    return named
