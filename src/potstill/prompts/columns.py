"""The columns of a row, as the recipe names them."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from potstill.errors import InputError
from potstill.recipe.prompts import TextColumns
from potstill.records import Message
from potstill.text.whole import whole


def column(row: dict[str, Any], name: str, key: str, where: str) -> Any:
    """The value of a column. Raises InputError naming the key of the recipe and the nearest right name."""
    if name in row:
        return row[name]
    near = difflib.get_close_matches(name, list(row), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the columns are {', '.join(map(str, row))}"
    raise InputError(f"prompts.columns.{key}: {where} has no column '{name}'", way_out=hint)


def messages_of(columns: TextColumns, where: str, row: dict[str, Any]) -> tuple[Message, ...]:
    """The row's prompt: `text` as one user turn, `messages` as they are. Raises InputError."""
    if columns.text is not None:
        text = column(row, columns.text, "text", where)
        return (Message(role="user", content=whole(str(text or "").strip())),)
    turns = column(row, str(columns.messages), "messages", where)
    try:
        found = (Message.from_dict(turn) for turn in turns)
        return tuple(replace(turn, content=whole(turn.content)) for turn in found)
    except (TypeError, KeyError, AttributeError):
        raise InputError(
            f"{where}: '{columns.messages}' is not a list of messages",
            way_out='give [{"role": "user", "content": "..."}]',
        ) from None
