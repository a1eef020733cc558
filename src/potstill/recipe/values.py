"""What every part of a recipe is made of: strict, frozen values with no unknown keys."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Values(BaseModel):
    """A misspelt key, a text for a number or a later change is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=False)


def by_kind(default: str) -> Discriminator:
    """Which member of a union is meant: `kind` names it, or it is the default one."""

    def kind_of(given: object) -> str:
        kind = cast("dict[str, object]", given).get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
        return str(kind or default)

    return Discriminator(kind_of)


def public_name(source: str) -> str:
    """A hub id as it is; of a file, a folder or a package's file, the last part of the name."""
    if _HUB_ID.fullmatch(source) and not source.endswith(".gguf"):
        return source
    name = PurePath(source.replace("\\", "/")).name
    return re.sub(r"[^\w.-]+", "-", name)
