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
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from potstill.errors import InputError

Kind = TypeVar("Kind", bound=BaseModel)


def value_at(path: Path, key: str) -> object:
    """The value of a top-level key of the YAML file, or None. Raises InputError where it is no YAML."""
    return _parse(path).get(key)


def read(path: Path, overrides: Iterable[str], kind: type[Kind]) -> Kind:
    """A YAML file as `kind` of recipe. Raises InputError."""
    tree = _parse(path)
    lines = _line_numbers(tree)
    values: dict[str, Any] = _plain(tree)
    for override in overrides:
        _apply(values, override, lines)
    try:
        return kind.model_validate_json(_json(values))
    except ValidationError as error:
        raise explain(error, str(path), lines, kind) from None


def as_yaml(recipe: BaseModel) -> str:
    """The resolved recipe, every default spelt out."""
    yaml = YAML()
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def _json(values: dict[str, Any]) -> str:
    # Strict JSON mode takes lists for tuples and refuses "3" for 3, which is what a YAML file needs.
    return json.dumps(values, default=str)


def _parse(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8")
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


def _apply(values: dict[str, Any], override: str, lines: dict[str, int]) -> None:
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
    for name in [name for name in lines if name == dotted or name.startswith(f"{dotted}.")]:
        del lines[name]


_MAY_HOLD_A_SECRET = ("url", "key_env", "key_file", "parameters")


def explain(error: ValidationError, path: str, lines: Mapping[str, int], kind: type[BaseModel]) -> InputError:
    """The first complaint of pydantic as one sentence with `path` (what was read), line, key and value."""
    first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    keys = _without_tags([str(part) for part in first["loc"]], kind)
    dotted = ".".join(keys)
    where = f"{path}, line {lines[dotted]}" if dotted in lines else path
    match first["type"]:
        case "extra_forbidden":
            known = _fields_at(keys[:-1], kind)
            near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
            inside = f" in '{'.'.join(keys[:-1])}'" if keys[:-1] else ""
            hint = f"did you mean '{near[0]}'?" if near else f"known keys{inside}: {', '.join(known)}"
            return InputError(f"{where}: unknown key '{keys[-1]}'{inside}", way_out=hint)
        case "missing":
            above = ".".join(keys[:-1])
            line = f", line {lines[above]}" if above in lines else ""
            return InputError(f"{path}{line}: '{dotted}' is missing", way_out=f"add '{dotted}'")
        case "value_error":
            said = str(first.get("ctx", {}).get("error", first["msg"]))
            return InputError(f"{where}: {f'{dotted}: ' if dotted else ''}{said}", way_out="fix the recipe")
        case _:
            value = repr(first["input"])
            shown = value if len(value) <= 60 else value[:57] + "..."
            if any(key in _MAY_HOLD_A_SECRET for key in keys) or isinstance(first["input"], dict):
                shown = "not right (the value is not shown, it may hold a secret)"
            return InputError(
                f"{where}: '{dotted}' is {shown}",
                way_out=first["msg"].replace("Input should be", "it should be"),
            )


def _fields_at(keys: Iterable[str], kind: type[BaseModel]) -> list[str]:
    """The keys known under a dotted place; of a union, those of all its members."""
    models: list[type[BaseModel]] = [kind]
    for key in keys:
        models = _models_under(models, key)
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _without_tags(keys: Iterable[str], kind: type[BaseModel]) -> list[str]:
    """The dotted place as it stands in the file: pydantic puts in which member of a union it tried."""
    models: list[type[BaseModel]] = [kind]
    kept: list[str] = []
    for key in keys:
        tags = [get_args(m.model_fields["kind"].annotation) for m in models if "kind" in m.model_fields]
        if key.startswith("<") or any(key in tag for tag in tags):
            continue
        kept.append(key)
        models = _models_under(models, key)
    return kept


def _models_under(models: Iterable[type[BaseModel]], key: str) -> list[type[BaseModel]]:
    inside = [m.model_fields[key].annotation for m in models if key in m.model_fields]
    return [found for annotation in inside for found in _models_of(annotation)] if inside else list(models)


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _models_of(part)]
