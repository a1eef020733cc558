"""The columns of a row, as the recipe names them."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from functools import lru_cache
from typing import Any, cast

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potstill.errors import InputError
from potstill.recipe.prompts import Columns, TextColumns
from potstill.records import Message, Tools
from potstill.text.whole import whole_values

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "ai": "assistant", "bot": "assistant"} | {
    role: role for role in ("system", "user", "assistant", "tool")
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_WHOLE = 2**53  # from here on a float may stand for several whole numbers


def column(row: dict[str, Any], name: str, key: str, where: str) -> Any:
    """The value of a column, `data.question` that of `question` in the object `data`. Raises InputError naming the key
    of the recipe and the nearest right name."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            break
        value = cast("dict[str, Any]", value)[part]
    else:
        return value
    known = [*row, *(f"{outer}.{inner}" for outer, held in row.items() if isinstance(held, dict) for inner in held)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the columns are {', '.join(map(str, known))}"
    raise InputError(f"prompts.columns.{key}: {where} has no column '{name}'", way_out=hint)


def as_text(value: object) -> str | None:
    """A text as it is, 3.0 as 3 (as pandas keeps whole numbers where others are missing), a date or decimal as people
    write it, anything else as JSON. None where there is no value."""
    match value:
        case None | str():
            return value
        case float() if math.isnan(value):
            return None
        case float() if value.is_integer() and abs(value) < _WHOLE:
            return str(int(value))
        case int() | float() | list() | tuple() | dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


def scalar(value: object, name: str, key: str, where: str) -> str | None:
    """The same of one text, number or date. Raises InputError of anything else."""
    if isinstance(value, bytes | list | tuple | dict):
        raise InputError(
            f"prompts.columns.{key}: {where}: '{name}' is {str(cast(object, value))[:80]}, not a text",
            way_out="name a column of texts, or a part of it as in 'data.question'",
        )
    return as_text(value)


def messages_of(columns: TextColumns, where: str, row: dict[str, Any], left_out: Counter[str]) -> tuple[Message, ...]:
    """The row's prompt: `text` as one user turn, `messages` up to the last turn that is not the assistant's, which is
    counted in `left_out`. Raises InputError."""
    if columns.text is not None:
        return (Message(role="user", content=_text(columns.text, where, row).strip()),)
    given = column(row, str(columns.messages), "messages", where)
    try:
        messages = tuple(Message.from_dict(_turn(turn, columns)) for turn in _turns(given))
    except ValueError as error:
        raise InputError(
            f"{where}: '{columns.messages}': {error}",
            way_out="fix the row, or name fields that may be lost in 'prompts.columns.ignored'",
        ) from None
    except (TypeError, KeyError, AttributeError):
        raise InputError(
            f"{where}: '{columns.messages}' is not a list of messages: {str(given)[:80]}",
            way_out='give [{"role": "user", "content": "..."}], or {"from": "human", "value": "..."}',
        ) from None
    if messages and messages[-1].role == "assistant":
        left_out["the assistant's turn at the end of a conversation"] += 1
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return messages


def _text(named: str | tuple[str, ...], where: str, row: dict[str, Any]) -> str:
    if isinstance(named, str) and "{{" in named:
        try:
            return _template(named).render(row)
        except Exception as error:  # a template is a program of the recipe's, which raises what it likes
            raise InputError(
                f"prompts.columns.text: {where}: '{named}': {error}", way_out=f"the columns are {', '.join(row)}"
            ) from None
    names = (named,) if isinstance(named, str) else named
    texts = [scalar(column(row, name, "text", where), name, "text", where) for name in names]
    return "\n".join(text for text in texts if text)


@lru_cache
def _template(text: str) -> jinja2.Template:
    def shown(value: object) -> object:
        return value if isinstance(value, jinja2.Undefined) else as_text(value) or ""

    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=shown).from_string(text)


def _turns(given: Any) -> list[dict[str, Any]]:
    """The turns of a list, of its JSON text, or of an object of lists, which `datasets` makes of a list of objects."""
    if isinstance(given, str):
        try:
            given = whole_values(json.loads(given))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON text of messages ({error}): {given[:80]!r}") from None
    if isinstance(given, dict):
        names, lists = zip(*cast("dict[str, list[Any]]", given).items(), strict=True)
        if not all(isinstance(values, list) for values in lists):
            raise TypeError
        return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
    return list(given)


def _turn(turn: dict[str, Any], columns: TextColumns) -> dict[str, Any]:
    """A turn in the Hugging Face convention, also from ShareGPT's `from` and `value`."""
    given = {name: value for name, value in turn.items() if name not in columns.ignored}
    if given.get("role") is None and "from" in given:
        given["role"], given["content"] = given.pop("from"), given.pop("value")
    if isinstance(role := given["role"], str):
        given["role"] = _ROLES.get(role.strip().lower(), role)
    if isinstance(content := given.get("content"), list):
        given["content"] = "\n".join(map(_part, cast("list[Any]", content)))
    return given


def _part(part: Any) -> str:
    """The text of a part of a message's content. Raises ValueError of any other."""
    if isinstance(part, str):
        return part
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (str(part)[:80], None)
    if kind not in _TEXT_PARTS:
        raise ValueError(f"a part of its content is of type '{kind}', and only text is asked")
    if not isinstance(text, str):
        raise ValueError(f"a part of its content has no text: {str(part)[:80]}")
    return text


def tools_of(columns: Columns, where: str, row: dict[str, Any]) -> Tools:
    """The tools that the row's prompt may call; none where the column is empty. Raises InputError."""
    if columns.tools is None:
        return ()
    given = column(row, columns.tools, "tools", where)
    try:
        tools = whole_values(json.loads(given) if given.strip() else ()) if isinstance(given, str) else given or ()
        wrong = next((tool for tool in tools if not isinstance(tool["function"]["name"], str)), None)
    except (ValueError, TypeError, KeyError, RecursionError):
        tools, wrong = (), given
    if wrong is not None:
        raise InputError(
            f"{where}: '{columns.tools}' is not a list of tools: {str(wrong)[:80]}",
            way_out='give [{"type": "function", "function": {"name": "...", "parameters": {...}}}]',
        )
    return tuple(tools)
