"""Where free-text prompts come from: a file or a folder, and which of its columns holds what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potstill.recipe import TextColumns
from potstill.values import Values


class AskColumns(TextColumns):
    """`reference`: what checks compare with (a gold answer, unit tests); any JSON value. It is never trained on."""

    reference: str | None = None


class PromptFile(Values):
    """A JSONL, CSV/TSV or Parquet file, or a folder saved by `datasets`. Streamed: it may hold millions."""

    kind: Literal["file"] = "file"
    source: str
    licence: str = Field(description="licence of the prompts, an SPDX id or a Hugging Face tag")
    columns: AskColumns
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
