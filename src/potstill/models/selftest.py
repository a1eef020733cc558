"""A self-test of an architecture: a tiny random fp32 model of the same configuration, held to plain transformers.

Each path that computes faster than `model(input_ids)` (packed rows, a kept prefix, slots, ...) brings a test that says
why the path is not exact for this architecture, or None. What it said is kept in the cache folder, under a hash of the
configuration, the versions of torch and transformers and the code of Potstill: a second start computes nothing.

Dimension key: L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.models.locate import cache_folder
from potstill.models.source import source_hash
from potstill.models.tiny import VOCABULARY, tiny
from potstill.text.tokens import Ids

TOLERANCE = 1e-4
_BESIDE = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A tiny model, texts of different length that begin alike, and what plain transformers makes of each alone: last
    hidden states (L, D) and logits (L, V)."""

    model: PreTrainedModel
    texts: tuple[Ids, ...]
    beginning: int
    hidden: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]


Test = Callable[[Sample], str | None]
"""Why a path is not exact, or None."""

_KEYS: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
_KNOWN: dict[str, dict[str, str | None]] = {}


def fault_of(model: PreTrainedModel | PretrainedConfig, path: str, test: Test) -> str | None:
    """Why the path is not exact for models of this configuration; None: it is. Tested once per configuration."""
    if isinstance(model, PreTrainedModel):
        key = _KEYS.get(model) or _KEYS.setdefault(model, _key(model.config))
    else:
        key = _key(model)
    known = _KNOWN.setdefault(key, {})
    if path not in known:
        known.update({**_read(key), **known})
    if path not in known:
        known[path] = _tested(model.config if isinstance(model, PreTrainedModel) else model, test)
        _write(key, known)
    return known[path]


def difference(found: Tensor, wanted: Tensor) -> str | None:
    """Whether the numbers differ by more than rounding, in words."""
    if found.shape != wanted.shape:
        return f"{tuple(found.shape)} numbers instead of {tuple(wanted.shape)}"
    off, most = (found - wanted).abs().max().item(), wanted.abs().max().item()
    return None if off <= TOLERANCE * max(1.0, most) else f"off by {off:.2g} where the largest number is {most:.2g}"


def _tested(config: PretrainedConfig, test: Test) -> str | None:
    with _by_itself():
        try:
            sample = _sample(_key(config), _Config(config))
        except Exception as error:  # whatever a configuration that nobody tried raises
            return f"no tiny model of it can be made ({_said(error)})"
        try:
            return test(sample)
        except Exception as error:
            return _said(error)


@dataclass(frozen=True)
class _Config:
    """One that is compared by its key alone."""

    config: PretrainedConfig

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2)
def _sample(key: str, of: _Config) -> Sample:
    torch.manual_seed(0)
    sample = _sampled(tiny(of.config))
    _KEYS[sample.model] = key  # what a test asks of it is asked of its configuration
    return sample


def _sampled(model: PreTrainedModel) -> Sample:
    draw = torch.Generator().manual_seed(1)
    beginning = torch.randint(3, VOCABULARY, (17,), generator=draw).tolist()
    ends = [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in (9, 3, 10)]
    texts = tuple((*beginning, *end) for end in ends)
    with torch.no_grad():
        made = [model(input_ids=torch.tensor([text]), use_cache=False) for text in texts]
        hidden = [model.base_model(input_ids=torch.tensor([text]), use_cache=False)[0] for text in texts]
    if not all(one.logits.isfinite().all() for one in made):
        raise ValueError("random weights give numbers that are not finite")
    logits = tuple(one.logits[0].float() for one in made)
    return Sample(model, texts, len(beginning), tuple(one[0] for one in hidden), logits)


@contextmanager
def _by_itself() -> Generator[None]:
    """In fp32 with gradients, whatever the caller does, without a trace in its random numbers and without a warning."""
    with (
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def _said(error: Exception) -> str:
    if isinstance(error, PotstillError):
        return error.problem  # its way out is for who asked for the path
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _key(config: PretrainedConfig) -> str:
    facts = {name: value for name, value in config.to_dict().items() if name not in _BESIDE}
    said = json.dumps([facts, version("torch"), version("transformers"), source_hash()], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def _file(key: str) -> Path:
    return cache_folder() / "selftests" / f"{key}.json"


def _read(key: str) -> dict[str, str | None]:
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(key: str, known: Mapping[str, str | None]) -> None:
    """Whole or not at all; a cache that cannot be written costs time and nothing else."""
    with suppress(OSError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=file.parent, prefix=".draft-")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({**_read(key), **known}, out)
        Path(draft).replace(file)
