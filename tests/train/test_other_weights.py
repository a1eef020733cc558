"""Weights that were replaced are never taken for those that were there before: by the ledger, the training, or the
signals that runs share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_runs import exported, query, write_recipe
from json_server import serving
from student_runs import kept_answers, recipe_in
from test_on_policy import recipe_on_policy

from potstill.errors import InputError
from potstill.generate.collect import load_asks
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.records import Progress
from potstill.store.requests import Requests
from potstill.store.run import open_run

TOP_K = {
    "method": {"kind": "logit_kd", "alpha": 0.0},
    "on_policy": None,
    "epochs": 1,
    "signal": {"kind": "top_k", "k": 4},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def replaced(model: Path, make_tiny_model: Callable[..., Path]) -> Callable[[int], None]:
    """Other weights in the same folder; seed 0 are the first ones."""

    def replace(seed: int) -> None:
        make_tiny_model(model, seed=seed)

    return replace


def test_a_folder_replaced_in_place_is_asked_anew(
    tmp_path: Path, cache: Path, model: Path, replaced: Callable[[int], None]
) -> None:
    local = ["teacher.engine={kind: local, slots: 4}", f"teacher.model={model}"]
    recipe = load_recipe(write_recipe(tmp_path, "http://127.0.0.1:9", prompts=3, max_tokens=6), local)
    run = tmp_path / "run"
    assert Run(recipe, run).generate().totals["attempts"] == 3
    before = exported(run)
    assert Run(recipe, run).generate().totals["attempts"] == 3
    replaced(1)
    assert Run(recipe, run).generate().totals["attempts"] == 6 and exported(run) != before
    seeds = query(run, "SELECT seed_key, count(DISTINCT key) FROM questions GROUP BY seed_key")
    assert [n for _, n in seeds] == [2, 2, 2], "the same draws from other weights"
    replaced(0)
    assert Run(recipe, run).generate().totals["attempts"] == 6 and exported(run) == before
    shutil.rmtree(model)  # what was answered can be verified where the model is not
    with pytest.raises(InputError, match="there is no model at"):
        Run(recipe, run).generate()
    with open_run(run, recipe) as folder, Requests(folder.ledger) as requests:
        load_asks(recipe.request, requests)
        assert requests.count_answers(most=1) == 3


def test_a_start_replaced_in_place_is_trained_anew(
    tmp_path: Path, cache: Path, model: Path, replaced: Callable[[int], None]
) -> None:
    recipe, run, notes = recipe_in(tmp_path, model, train={"epochs": 1}), tmp_path / "run", list[str]()

    def taught() -> str:
        notes.clear()

        def watch(progress: Progress) -> None:
            notes.append(progress.note)

        Run(recipe, run, watch).train()
        return json.loads((run / "arms" / "student" / "trained.json").read_text())["fingerprint"]

    kept_answers(recipe, run)
    first = taught()
    assert taught() == first and notes == ["already done"]
    replaced(1)
    assert taught() != first and notes != ["already done"]


def test_a_scoring_teacher_replaced_in_place_is_trained_with_anew(
    tmp_path: Path, cache: Path, tiny_model: Path, model: Path, replaced: Callable[[int], None]
) -> None:
    recipe, run = load_recipe(recipe_on_policy(tmp_path, tiny_model, model, **TOP_K)), tmp_path / "run"
    kept_answers(recipe, run)

    def fingerprint() -> str:
        Run(recipe, run).train()
        return json.loads((run / "arms" / "student" / "trained.json").read_text())["fingerprint"]

    first = fingerprint()
    assert fingerprint() == first
    replaced(1)
    assert fingerprint() != first


def test_signals_of_a_served_teacher_are_shared_by_stated_revisions_alone(
    tmp_path: Path, cache: Path, tiny_model: Path
) -> None:
    heard: list[Any] = []

    def answer(_: str, asked: Any) -> tuple[int, object]:
        heard.append(asked)
        likely = {str(t): {"logprob": -1.5, "rank": t + 1} for t in range(4)}
        listed = [None, *({str(t): {"logprob": -2.0, "rank": 5}, **likely} for t in asked["prompt"][1:])]
        return 200, {"choices": [{"prompt_logprobs": listed}], "usage": {}}

    def asked(run: str, revision: str | None, *more: str) -> tuple[int, list[str]]:
        """How many requests a new run sends, and what it says of them."""
        engine = {"kind": "server", "url": f"{address}/v1", "retry_seconds": 0.01}
        served = {"model": "served", "licence": "mit", "tokenizer": str(tiny_model), "engine": engine, "k": 4}
        served |= {"revision": revision} if revision else {}
        recipe = load_recipe(recipe_on_policy(tmp_path, tiny_model, tiny_model, **{**TOP_K, "scored_by": served}), more)
        kept_answers(recipe, tmp_path / run)
        heard.clear()
        notes: list[str] = []

        def watch(progress: Progress) -> None:
            notes.append(progress.note)

        Run(recipe, tmp_path / run, watch).train()
        return len(heard), [note for note in notes if "states no revision" in note]

    with serving(answer) as address:
        some, said = asked("a", None)
        assert some > 0 and len(said) == 1 and not (cache / "signals").exists()
        assert list((tmp_path / "a" / "signals").glob("*/cache.json"))
        assert asked("b", None)[0] == some, "who knows what weights the server has by now?"
        assert asked("c", "one") == (some, [])
        assert asked("d", "one") == (0, [])
        assert asked("e", "two") == (some, [])
        with pytest.raises(InputError, match=r"state which they are in 'scored_by\.revision'"):
            asked("f", None, f"train.signals_folder={tmp_path / 'here'}")
