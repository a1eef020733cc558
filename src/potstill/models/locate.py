"""Where a model named in a recipe lies, and what it is, without reading its weights."""

from __future__ import annotations

import difflib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Literal

from potstill.errors import InputError, MissingEnvironment
from potstill.models.config import (
    hidden_of,
    layers_of,
    require_weights_as_numbers,
    text_config,
    vocabulary_of,
)
from potstill.models.gguf import read_header
from potstill.models.known import known_shape
from potstill.models.shapes import Shape, shape_of_config, shape_of_gguf

Form = Literal["gguf", "folder", "hub"]


@dataclass(frozen=True, slots=True)
class Located:
    """`path` is the file or folder; None for a hub id that is not on this machine yet."""

    name: str
    form: Form
    path: Path | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan needs of a model. Parameters are counted once where embeddings and head are tied. `shape` is None for
    an architecture whose parts are not known."""

    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    tied: bool
    shape: Shape | None = None

    @property
    def per_layer(self) -> int:
        heads = 1 if self.tied else 2
        return (self.parameters - heads * self.vocabulary * self.hidden - self.hidden) // self.layers

    def with_layers(self, layers: int) -> int:
        """Parameters of the same model cut to `layers` layers."""
        return self.parameters - (self.layers - layers) * self.per_layer


def check_layers(model: Facts | None, layers: int | Sequence[int], *, key: str) -> None:
    """Raises InputError where the model is known to have fewer, or not those."""
    if model is None:
        return
    if not isinstance(layers, int):
        if strange := [layer for layer in layers if layer >= model.layers]:
            raise InputError(
                f"{key} names layer {strange[0]}, but the model it starts from has {model.layers} layers",
                way_out=f"choose from 0 to {model.layers - 1}",
            )
    elif layers > model.layers:
        raise InputError(
            f"{key} is {layers}, but the model it starts from has {model.layers} layers",
            way_out=f"choose 1 to {model.layers}",
        )


def locate(name: str) -> Located:
    """Resolve a hub id, a folder, a `.gguf` file or `package:NAME/FILE`. Raises InputError or MissingEnvironment."""
    if name.startswith("package:"):
        return _in_package(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"the folder '{name}' holds no model (no config.json)",
                way_out="give a folder written by save_pretrained",
            )
        return Located(name, "folder", path)
    if path.is_file():
        return Located(name, "gguf", path)
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") != 1:
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean '{path.parent / near[0]}'?" if near else "give a hub id, a folder or a .gguf file"
        raise InputError(f"there is no model at '{name}'", way_out=hint)
    return Located(name, "hub", None)


def _in_package(name: str) -> Located:
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingEnvironment(
            f"the model '{name}' needs the Python package '{package}', which is not installed",
            way_out=f"pip install {package.replace('_', '-')}",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.is_file():
        raise InputError(f"the package '{package}' holds no file '{inside}'", way_out="check the name")
    return Located(name, "gguf", path)


def facts(located: Located) -> Facts | None:
    """Layers, widths and parameters from headers and configs alone; None for a hub id that is neither in the hub's
    cache nor a known one."""
    if located.path is None:
        shape = _cached_shape(located.name) or known_shape(located.name)
        return None if shape is None else _facts_of(shape)
    return _gguf_facts(located.path) if located.form == "gguf" else _folder_facts(located.path)


def _facts_of(shape: Shape) -> Facts:
    return Facts(
        architecture=shape.architecture,
        layers=shape.layers,
        hidden=shape.width,
        vocabulary=shape.vocabulary,
        parameters=shape.parameters,
        tied=shape.tied,
        shape=shape,
    )


def _cached_shape(name: str) -> Shape | None:
    """From the configuration that the hub's client downloaded before, if it did."""
    folder = hub_snapshot(name, None)
    config = None if folder is None else folder / "config.json"
    if config is None or not config.is_file():
        return None
    values = read_json(config)
    require_weights_as_numbers(values, name=name)
    return shape_of_config(text_config(values))


def hub_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder to which the hub's client downloaded that revision (a branch, a tag or a commit) before, if it did."""
    folder = _hub_cache() / f"models--{name.replace('/', '--')}"
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = None if commit is None else folder / "snapshots" / commit
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def _hub_cache() -> Path:
    """Where the hub's client keeps what it downloads. To import it and ask would take a third of a second."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def _gguf_facts(path: Path) -> Facts:
    header = read_header(path)
    architecture = str(header.values.get("general.architecture", "unknown"))
    embedding = header.shapes.get("token_embd.weight")
    layers = header.values.get(f"{architecture}.block_count")
    if embedding is None or not isinstance(layers, int) or len(embedding) != 2:
        raise InputError(
            f"'{path}' holds no language model (no token embeddings or no layer count)",
            way_out="give the GGUF file of a causal language model",
        )
    tied = "output.weight" not in header.shapes
    return Facts(
        architecture=architecture,
        layers=layers,
        hidden=embedding[1],
        vocabulary=embedding[0],
        parameters=header.parameters,
        tied=tied,
        shape=shape_of_gguf(header.values, (embedding[0], embedding[1]), tied=tied),
    )


def _folder_facts(folder: Path) -> Facts:
    whole = read_json(folder / "config.json")
    require_weights_as_numbers(whole, name=str(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"'{folder}' holds no .safetensors weights", way_out="save the model as safetensors")
    shapes = _of_language_model({name: shape for file in files for name, shape in _safetensors_shapes(file).items()})
    config = text_config(whole)
    layers, hidden, vocabulary = layers_of(config), hidden_of(config), vocabulary_of(config)
    if vocabulary is None:  # a nested configuration leaves out what its class has by default
        vocabulary = next((shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), None)
    if layers is None or hidden is None or vocabulary is None:
        lacking = {"number of layers": layers, "hidden size": hidden, "vocabulary size": vocabulary}
        what = next(what for what, value in lacking.items() if value is None)
        raise InputError(
            f"'{folder / 'config.json'}' does not say the {what}",
            way_out="give the folder of a causal language model",
        )
    whole_matrices = sum(shape == [vocabulary, hidden] for shape in shapes.values())
    return Facts(
        architecture=str(config.get("model_type", "unknown")),
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        parameters=sum(_numbers(name, shape) for name, shape in shapes.items()),
        tied=bool(config.get("tie_word_embeddings", False)) or whole_matrices == 1,
        shape=shape_of_config(config),
    )


def rows_of(folder: Path) -> int | None:
    """How many tokens a model's embeddings have a row for; None where its configuration does not say."""
    config = folder / "config.json"
    return vocabulary_of(text_config(read_json(config))) if config.is_file() else None


def _of_language_model(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Without what reads images or sounds, where there is such a thing."""
    if not any("language_model." in name for name in shapes):
        return shapes
    return {name: shape for name, shape in shapes.items() if "language_model." in name or name.startswith("lm_head")}


def _numbers(name: str, shape: list[int]) -> int:
    """How many weights a tensor holds: mxfp4 has two to a byte, and scales beside them, as fp8 has."""
    if name.endswith(("_scales", "_scale_inv")):
        return 0
    return prod(shape) * (2 if name.endswith("_blocks") else 1)


def classifier_labels(located: Located) -> tuple[str, ...] | None:
    """The outputs of a sequence classifier, in order; None for a hub id that is not here. Raises InputError."""
    if located.form == "gguf":
        raise InputError(f"'{located.name}' is a .gguf file, not a classifier", way_out="give a folder or a hub id")
    if located.path is None:
        return None
    config = read_json(located.path / "config.json")
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        raise InputError(
            f"'{located.name}' is no sequence classifier (architectures: {config.get('architectures')})",
            way_out="give a reward model",
        )
    require_weights_as_numbers(config, name=located.name)
    if not any(located.path.glob("*.safetensors")):
        raise InputError(f"'{located.path}' holds no .safetensors weights", way_out="save the model as safetensors")
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # the two that a config does not write down
    return tuple(str(named[key]) for key in sorted(named, key=int))


def require_label(labels: tuple[str, ...], label: str | None, *, model: str) -> None:
    """Raises InputError where it is not clear which output of a classifier is meant."""
    if label is None and len(labels) > 1:
        raise InputError(
            f"'{model}' has {len(labels)} labels ({', '.join(labels)})", way_out="say which counts as 'label'"
        )
    if label is not None and (len(labels) == 1 or label not in labels):
        raise InputError(
            f"'{model}' has no label '{label}' among several: it has {', '.join(labels)}",
            way_out="name one of several, or leave 'label' out where there is one",
        )


def _safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """By name, from the header (8 bytes of length, then JSON); the data must fill the file exactly."""
    size = path.stat().st_size
    damaged = InputError(f"'{path}' is a damaged safetensors file", way_out="download it again")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(100 << 20, size - 8):
            raise damaged
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            raise damaged from None
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if 8 + length + max((t["data_offsets"][1] for t in tensors.values()), default=0) != size:
        raise damaged
    return {name: entry["shape"] for name, entry in tensors.items()}


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is not valid JSON: {error}", way_out="fix or replace it") from None


def cache_folder() -> Path:
    """Where converted models are kept between runs: $POTSTILL_CACHE, or potstill in the user's cache folder."""
    if chosen := os.environ.get("POTSTILL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"
