"""Fenced blocks of an answer, by CommonMark's line rules, and the code or the JSON that is meant by them."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)")
_LINES = re.compile(r"\r\n|\n|\r")
_PYTHON = frozenset({"python", "py", "python3", "py3"})
_TRIES = 200  # places in prose where a JSON value may begin


@dataclass(frozen=True, slots=True)
class Block:
    """`language`: the first word of its info string, in lower case."""

    language: str
    body: str


def blocks(text: str) -> list[Block]:
    """A fence opens with three or more backticks or tildes, and closes with as many of the same, alone in a line and
    not indented by more than three blanks; one that is left open reaches to the end."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    body: list[str] = []
    for line in _LINES.split(text):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            if fence and not (fence[2][0] == "`" and "`" in fence[3]):
                opened, body = (len(fence[1]), fence[2], _language(fence[3])), []
        elif fence and _closes(fence, opened):
            found.append(Block(opened[2], _joined(body)))
            opened = None
        else:
            body.append(line[min(opened[0], len(line) - len(line.lstrip(" "))) :])
    return found if opened is None else [*found, Block(opened[2], _joined(body))]


def _closes(fence: re.Match[str], opened: tuple[int, str, str]) -> bool:
    indent, mark, _ = opened
    return fence[2].startswith(mark) and not fence[3].strip() and len(fence[1]) <= indent + 3


def _language(info: str) -> str:
    words = info.strip().lstrip("{.").split()
    return words[0].rstrip("}").lower() if words else ""


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def json_in(text: str, *, prose: bool = False) -> tuple[Any, str]:
    """(value, "") of a JSON text: bare, in the last fenced block, or (`prose`) the last object or list between words;
    (None, what is wrong) otherwise."""
    try:
        return _value(text), ""
    except RecursionError:
        return None, "nested too deep"
    except ValueError:
        pass
    fenced = [block.body for block in blocks(text) if block.language in ("", "json")]
    try:
        if fenced:
            return _value(fenced[-1]), ""
        return _last_value(text) if prose else (None, "no JSON")
    except RecursionError:
        return None, "nested too deep"
    except ValueError:
        return None, "no JSON"


def _value(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _last_value(text: str) -> tuple[Any, str]:
    decoder, at, tries = json.JSONDecoder(parse_constant=_no_constant), 0, 0
    found: tuple[Any, str] = (None, "no JSON")
    while (opened := re.compile(r"[\[{]").search(text, at)) and tries < _TRIES:
        tries += 1
        try:
            value, at = decoder.raw_decode(text, opened.start())
            found = (value, "")
        except ValueError:
            at = opened.end()
    return found


def same_json(one: Any, two: Any) -> bool:
    """Equal in JSON's terms: 1 is 1.0, and neither is true. Raises RecursionError where they are nested too deep."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same_json(value, two[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same_json, one, two))
    return one == two


def code_in(text: str) -> str:
    """The Python of an answer: its blocks of Python together, less those that later ones write anew and examples of
    use; its last block where none is Python; all of it where there is no block."""
    found = blocks(text)
    python = [block.body for block in found if block.language in _PYTHON]
    python = python or [block.body for block in found if not block.language and _names(block.body) is not None]
    if python:
        return "\n".join(_together(python))
    return found[-1].body if found else "\n".join(_LINES.split(text))


def _together(python: list[str]) -> Iterable[str]:
    if len(python) == 1:
        return python
    kept: list[str] = []
    later: set[str] = set()
    for body in reversed(python):
        if (names := _names(body)) and not names <= later:
            kept.insert(0, body)
            later |= names
    return kept or python[-1:]


def _names(code: str) -> set[str] | None:
    """What it defines, imports or assigns at its top level; None where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: set[str] = set()
    for part in tree.body:
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name for alias in names}
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                found |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            case _:
                pass
    return found
