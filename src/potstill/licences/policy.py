"""May a model be trained on this teacher's answers, or on these prompts? Unknown means no.

Not legal advice. Keys are SPDX ids or Hugging Face `license` tags, lower-case. Sources and doubts of every line:
docs/design/licences.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.errors import LicenceRefused
from potstill.recipe import Recipe, arms_of


@dataclass(frozen=True, slots=True)
class Policy:
    """`conditional` is allowed, and its duties are printed wherever the data and the model go."""

    verdict: Literal["allow", "conditional", "refuse"]
    duties: str = ""


_ALLOW = Policy("allow")
_LLAMA = Policy(
    "conditional",
    "a distributed student's name starts with 'Llama'; show 'Built with Llama'; pass on the licence",
)
_RAIL = Policy(
    "conditional",
    "a student trained on outputs can count as a derivative: pass on the use restrictions",
)
_NON_COMMERCIAL = Policy("conditional", "non-commercial use only; attribution")

_POLICIES: dict[str, Policy] = {
    **dict.fromkeys(("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc"), _ALLOW),
    "nvidia-open-model-license": _ALLOW,
    "cc-by-4.0": Policy("conditional", "attribution"),
    "cc-by-sa-4.0": Policy("conditional", "attribution; data derived from it is shared under the same licence"),
    **dict.fromkeys(("cc-by-nc-4.0", "qwen-research"), _NON_COMMERCIAL),
    **dict.fromkeys(("llama3.1", "llama3.2", "llama3.3", "llama4"), _LLAMA),
    **dict.fromkeys(("openrail", "bigscience-openrail-m", "bigcode-openrail-m", "gemma", "deepseek"), _RAIL),
    "qwen": Policy("conditional", "show 'Built with Qwen' or 'Improved using Qwen' with a distributed student"),
    "llama2": Policy("refuse", "its terms forbid training other models on its answers"),
    "llama3": Policy("refuse", "its terms forbid training other models on its answers"),
    "tongyi-qianwen": Policy("refuse", "its terms forbid training other models on its answers"),
    "tencent-hunyuan": Policy("refuse", "its terms forbid improving other models with its answers"),
    "own": Policy("allow", "you state that you hold the rights"),
}


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


def check_licence(licence: str, *, key: str) -> Policy:
    """The policy for `licence`; raises LicenceRefused (exit 7) where it forbids or is not known."""
    policy = _POLICIES.get(licence.strip().lower())
    if policy is None:
        raise LicenceRefused(
            f"{key}: the licence '{licence}' is not known to allow training on it",
            way_out=f"read its terms; known ones are {', '.join(sorted(_POLICIES))}",
        )
    if policy.verdict == "refuse":
        raise LicenceRefused(
            f"{key}: '{licence}' refuses: {policy.duties}",
            way_out="choose another teacher or another source",
        )
    return policy
