"""No method moves its teacher: the weights in memory hash the same before and after, and so does the folder.

Classifiers and the recipe's encoder are in test_classifiers.py and test_encoder.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from choice_runs import tiny_quickstart
from student_runs import recipe_in, taught
from transformers import PreTrainedModel

import potstill
from potstill.models.int8 import to_int8
from potstill.models.load import Loaded, fingerprint, load

SOFT = {"kind": "logit_kd", "alpha": 0.5}
OWN = {"max_tokens": 4, "warm_up": 0.0, "slots": 4}
WAYS: dict[str, dict[str, Any]] = {
    "live": {},
    "top_k": {"signal": {"kind": "top_k", "k": 16}},
    "sampled": {"signal": {"kind": "sampled", "draws": 8}},
    "int8": {"signal": {"kind": "hidden"}},
    "bf16": {"signal": {"kind": "hidden", "dtype": "bf16"}},
    "on_policy": {"method": {**SOFT, "divergence": "reverse_kl", "alpha": 0.0}, "on_policy": OWN},
}


def hashed(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Loads:
    """Stands in for `load` and remembers every model that it loaded, with the hash that it had then."""

    def __init__(self) -> None:
        self.seen: list[tuple[PreTrainedModel, str]] = []

    def __call__(self, *which: Any, **how: Any) -> Loaded:
        loaded = load(*which, **how)
        self.seen.append((loaded.model, hashed(loaded.model)))
        return loaded

    def all_as_they_were(self) -> bool:
        return bool(self.seen) and all(hashed(model) == before for model, before in self.seen)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", list(WAYS))
def test_who_scores_whole_answers_stays_as_it_was(
    name: str, lora: bool, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    loads, before = Loads(), fingerprint(tiny_model)
    monkeypatch.setattr("potstill.train.scored.load", loads)
    student: dict[str, Any] = {"start": str(tiny_model), "licence": "mit", "layers": 2, "freeze_embeddings": False}
    student |= {"lora": {"rank": 2, "alpha": 4}} if lora else {}
    scorer = {"model": str(tiny_model), "licence": "mit"}  # the student is cut from the same weights
    train = {"method": SOFT, "epochs": 1, "batch_size": 20, "learning_rate": 0.01, "scored_by": scorer, **WAYS[name]}
    taught(recipe_in(tmp_path, tiny_model, student=student, train=train), tmp_path / "run")
    assert loads.all_as_they_were() and fingerprint(tiny_model) == before


@pytest.mark.parametrize("name", list(WAYS))
def test_who_scores_in_int8_stays_as_it_was_rounded(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    seen: list[tuple[PreTrainedModel, str]] = []

    def rounded(model: PreTrainedModel, *, name: str) -> PreTrainedModel:
        seen.append((made := to_int8(model, name=name), hashed(made)))
        return made

    monkeypatch.setattr("potstill.train.scored.to_int8", rounded)
    before = fingerprint(tiny_model)
    student = {"start": str(tiny_model), "licence": "mit", "layers": 2, "freeze_embeddings": False}
    scorer = {"model": str(tiny_model), "licence": "mit", "quantization": "int8"}
    train = {"method": SOFT, "epochs": 1, "batch_size": 20, "learning_rate": 0.01, "scored_by": scorer, **WAYS[name]}
    taught(recipe_in(tmp_path, tiny_model, student=student, train=train), tmp_path / "run")
    ((teacher, hash_before),) = seen
    assert any(value.dtype == torch.int8 for value in teacher.state_dict().values())
    assert hashed(teacher) == hash_before and fingerprint(tiny_model) == before


def test_who_chooses_among_answers_stays_as_it_was(
    tmp_path: Path, make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    recipe = tiny_quickstart(tmp_path, teacher, "controls=[from_scratch, hard_labels]")
    loads, before = Loads(), fingerprint(teacher)
    monkeypatch.setattr("potstill.train.initial.load", loads)
    potstill.distill(recipe, folder=tmp_path / "run", through="train")
    assert len(loads.seen) >= 3 and loads.all_as_they_were() and fingerprint(teacher) == before
