"""Recipe files: YAML 1.2 in, a strict frozen value out, and back.

Whatever is wrong is one sentence with file, line, key and value, and the nearest right key; `--set a.b=c` overrides.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from potstill.errors import InputError
from potstill.recipe.explain import Origin, explain
from potstill.recipe.whole import Recipe


def value_at(path: Path, key: str) -> object:
    """The value of a top-level key of the YAML file, or None. Raises InputError where it is no YAML."""
    return _parse(path).get(key)


def read(path: Path, overrides: Iterable[str]) -> Recipe:
    """Raises InputError."""
    tree = _parse(path)
    lines = _line_numbers(tree)
    values: dict[str, Any] = _plain(tree)
    overridden = [_apply(values, override) for override in overrides]
    try:
        # Strict JSON mode takes lists for tuples and refuses "3" for 3, which is what a YAML file needs.
        return Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise explain(error, Origin(str(path), lines, overridden)) from None


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default spelt out."""
    yaml = YAML()
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def _parse(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = (
            f"did you mean '{path.parent / near[0]}'?"
            if near
            else "give the path of a recipe such as recipes/quickstart.yaml"
        )
        raise InputError(f"there is no recipe at '{path}'", way_out=hint) from None
    except IsADirectoryError:
        raise InputError(f"'{path}' is a folder, not a recipe", way_out="give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text (byte {error.start})", way_out="save the recipe as UTF-8"
        ) from None
    try:
        tree = _tree(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "cannot be read").splitlines()[0]
        raise InputError(f"{path}, line {line}: not valid YAML: {problem}", way_out="fix that line") from None
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}", way_out="fix the file") from None
    if not isinstance(tree, CommentedMap):
        raise InputError(f"{path} holds no keys", way_out="start from recipes/quickstart.yaml")
    return tree


@lru_cache(maxsize=1)
def _tree(text: str) -> object:
    """A run folder's file is asked whose it is, and for all of it. Not to be changed."""
    return YAML().load(text)


def _line_numbers(tree: object, prefix: str = "") -> dict[str, int]:
    """Dotted key -> line in the file, counted from 1."""
    lines: dict[str, int] = {}
    if isinstance(tree, CommentedMap):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            lines[name] = tree.lc.data[key][0] + 1 if key in tree.lc.data else 1
            lines |= _line_numbers(value, f"{name}.")
    elif isinstance(tree, CommentedSeq):
        for position, value in enumerate(tree):
            lines |= _line_numbers(value, f"{prefix}{position}.")
    return lines


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(node, list):
        return [_plain(value) for value in node]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def _apply(values: dict[str, Any], override: str) -> str:
    """Put it into `values`; its dotted key."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(
            f"--set {override}: not of the form key.subkey=value",
            way_out="write for example --set train.epochs=2",
        )
    *parents, last = dotted.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: '{parent}' has no sub-keys", way_out="set the whole key instead")
        node = child  # pyright: ignore[reportUnknownVariableType]
    try:
        node[last] = _plain(YAML(typ="safe", pure=True).load(text))
    except YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML", way_out="quote it") from None
    return dotted
