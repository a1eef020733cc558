"""Students of data recipes, as tests describe, teach, stop and refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from potstill.cli import execute
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.records import Progress
from potstill.store.metrics import Metrics

FILMS = ["good", "bad", "dull", "nap", "idea", "film", "actors", "script"]


def recipe_in(folder: Path, model: Path, **changes: Any) -> Recipe:
    """Prompts "say X" whose canned answers are right twice and wrong once; the exam asks the same kind of thing."""
    prompts = [f"say {a} {b}" for a in FILMS for b in FILMS if a != b]
    learn, test = prompts[:40], prompts[40:]
    gold = {p: p.removeprefix("say ") for p in prompts}
    (folder / "learn.jsonl").write_text("".join(json.dumps({"q": p, "a": gold[p]}) + "\n" for p in learn))
    (folder / "test.jsonl").write_text("".join(json.dumps({"q": p, "a": gold[p]}) + "\n" for p in test))
    lines = [{"prompt": p, "answer": a} for p in prompts for a in (gold[p], "what?", gold[p])]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"text": "q", "reference": "a"}
    values = {
        "name": "say",
        "prompts": {"source": str(folder / "learn.jsonl"), "licence": "mit", "columns": columns},
        "teacher": {
            "model": "canned",
            "licence": "apache-2.0",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": 3},
        "verify": {"checks": [{"kind": "exact"}]},
        "student": {"start": str(model), "licence": "mit", "layers": 2, "freeze_embeddings": False},
        "train": {"epochs": 30, "batch_size": 8, "learning_rate": 0.01},
        "evaluate": {
            "prompts": {"source": str(folder / "test.jsonl"), "licence": "mit", "columns": columns},
            "checks": [{"kind": "exact"}],
            "max_tokens": 12,
        },
        **changes,
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(values, file)
    return load_recipe(path)


def kept_answers(recipe: Recipe, run: Path) -> None:
    Run(recipe, run).generate()
    Run(recipe, run).verify()


def stop_at(step: int) -> Callable[[Progress], None]:
    """Ctrl-C, right after that step of training."""

    def watch(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == step:
            raise KeyboardInterrupt

    return watch


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def taught(recipe: Recipe, run: Path, *, stops: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """Weights of the student of a new run that was stopped after each of the steps and went on each time."""
    kept_answers(recipe, run)
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            Run(recipe, run, stop_at(step)).train()
    return weights(Run(recipe, run).train()["student"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(run: Path) -> list[dict[str, Any]]:
    return Metrics(run / "metrics.jsonl").rows("student")


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in logged(run)]


def refusal(
    verb: str, recipe: Path, overrides: Sequence[str], capsys: pytest.CaptureFixture[str], *, code: int = 2
) -> str:
    """The one sentence that a command says instead of doing its work."""
    words = [verb, str(recipe), "--run", str(recipe.parent / "run"), *(w for o in overrides for w in ("--set", o))]
    assert execute(words) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error
