"""The columns of a row, as the recipe names them."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from typing import Any

from potstill.errors import InputError
from potstill.recipe.prompts import Columns, TextColumns
from potstill.records import Message, Tools
from potstill.text.whole import whole, whole_values


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
        found = (Message.from_dict(whole_values(turn) if turn.get("tool_calls") else turn) for turn in turns)
        return tuple(replace(turn, content=whole(turn.content)) for turn in found)
    except ValueError as error:
        raise InputError(f"{where}: '{columns.messages}': {error}", way_out="fix the row") from None
    except (TypeError, KeyError, AttributeError):
        raise InputError(
            f"{where}: '{columns.messages}' is not a list of messages",
            way_out='give [{"role": "user", "content": "..."}]',
        ) from None


def tools_of(columns: Columns, where: str, row: dict[str, Any]) -> Tools:
    """The tools that the row's prompt may call; none where the column is empty. Raises InputError."""
    if columns.tools is None:
        return ()
    given = column(row, columns.tools, "tools", where)
    try:
        tools = whole_values((json.loads(given) if given.strip() else ()) if isinstance(given, str) else given or ())
        wrong = next((tool for tool in tools if not isinstance(tool["function"]["name"], str)), None)
    except (ValueError, TypeError, KeyError):
        tools, wrong = (), given
    if wrong is not None:
        raise InputError(
            f"{where}: '{columns.tools}' is not a list of tools: {str(wrong)[:80]}",
            way_out='give [{"type": "function", "function": {"name": "...", "parameters": {...}}}]',
        )
    return tuple(tools)
