"""What pydantic complains of in a recipe, as one sentence: where it stands, key, value, and the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from potstill.errors import InputError
from potstill.recipe.whole import Recipe

Models = Sequence[type[BaseModel]]

_MAY_HOLD_A_SECRET = ("url", "key_env", "key_file", "headers", "query", "parameters")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a recipe come from: a file with the lines of its keys, but for those given by `--set`."""

    path: str
    lines: Mapping[str, int]
    overrides: Sequence[str] = ()

    def of(self, dotted: str) -> str:
        """The place to look at for this key: that of its value, or else of the first key in it."""
        for override in self.overrides:
            if dotted == override or dotted.startswith(f"{override}."):
                return f"--set {override}"
        found = self.lines.get(dotted) or min(
            (n for k, n in self.lines.items() if k.startswith(f"{dotted}.")), default=0
        )
        return f"{self.path}, line {found}" if found else self.path


@dataclass(frozen=True, slots=True)
class _Place:
    """A key as it stands in the file; `models`: those that it may be a key of; `others`: the kinds of thing that may
    stand there too, but were not chosen."""

    keys: tuple[str, ...]
    models: Models
    others: Models

    @property
    def dotted(self) -> str:
        return ".".join(self.keys)

    @property
    def inside(self) -> str:
        return f" in '{'.'.join(self.keys[:-1])}'" if self.keys[:-1] else ""


def explain(error: ValidationError, origin: Origin) -> InputError:
    """The first complaint; an unknown key before all others, since it is most often the cause of them."""
    first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    place = _place([str(part) for part in first["loc"]])
    where, dotted = origin.of(place.dotted), place.dotted
    match first["type"]:
        case "extra_forbidden":
            return InputError(f"{where}: unknown key '{place.keys[-1]}'{place.inside}", way_out=_nearest_key(place))
        case "union_tag_invalid":
            tag, kinds = str(first.get("ctx", {}).get("tag")), _kinds(place.models)
            way_out = _did_you_mean(tag, kinds) or f"known kinds: {', '.join(kinds)}"
            return InputError(f"{where}: unknown kind '{tag}' in '{dotted}'", way_out=way_out)
        case "union_tag_not_found":
            kinds = _kinds(place.models)
            return InputError(f"{where}: '{dotted}.kind' is missing", way_out=f"add one of {', '.join(kinds)}")
        case "missing":
            return InputError(
                f"{origin.of('.'.join(place.keys[:-1]))}: '{dotted}' is missing", way_out=f"add '{dotted}'"
            )
        case "value_error":
            said = str(first.get("ctx", {}).get("error", first["msg"]))
            return InputError(f"{where}: {f'{dotted}: ' if dotted else ''}{said}", way_out="fix the recipe")
        case _:
            way_out = first["msg"].replace("Input should be", "it should be").replace("an object", "a mapping")
            return InputError(f"{where}: '{dotted}' is {_shown(first, place)}", way_out=way_out)


def _shown(error: ErrorDetails, place: _Place) -> str:
    if isinstance(error["input"], dict):
        return "a mapping"
    if any(key in _MAY_HOLD_A_SECRET for key in place.keys):
        return "not right (the value is not shown, it may hold a secret)"
    value = repr(error["input"])
    return value if len(value) <= 60 else value[:57] + "..."


def _nearest_key(place: _Place) -> str:
    key, known = place.keys[-1], _fields(place.models)
    if theirs := _kinds([model for model in place.others if key in model.model_fields]):
        own = _kinds(place.models)
        return f"'{key}' belongs to {' and '.join(theirs)}, and this is {' or '.join(own)}"
    if key in known:
        return f"'{'.'.join(place.keys[:-1])}' takes one of {', '.join(known)}"
    return _did_you_mean(key, known) or f"known keys{place.inside}: {', '.join(known)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


def _place(parts: Iterable[str]) -> _Place:
    """Pydantic puts in which member of a union it tried: by its kind, or in <>. That is no key."""
    keys: list[str] = []
    models: Models = [Recipe]
    others: Models = []
    for part in parts:
        chosen = [model for model in models if part in _kinds([model])] if len(models) > 1 else []
        if chosen:
            models, others = chosen, [model for model in models if model not in chosen]
        elif not part.startswith("<"):
            keys.append(part)
            if below := [found for model in models for found in _models_under(model, part)]:
                models, others = below, []
    return _Place(tuple(keys), models, others)


def _kinds(models: Iterable[type[BaseModel]]) -> list[str]:
    fields = [model.model_fields["kind"] for model in models if "kind" in model.model_fields]
    return [str(kind) for field in fields for kind in get_args(field.annotation)]


def _fields(models: Iterable[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_under(model: type[BaseModel], key: str) -> Iterable[type[BaseModel]]:
    return _models_of(model.model_fields[key].annotation) if key in model.model_fields else ()


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _models_of(part)]
