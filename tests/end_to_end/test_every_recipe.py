"""Every verb on every recipe of recipes/: it does its work, or says in one sentence why it cannot.

The recipes are as they are shipped but for what a test cannot have: models are tiny ones of random weights, teachers of
texts are canned, servers are loopback ones, and prompts are few.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loopback import loopback
from potstill.cli import execute
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.methods import LogitKd
from potstill.recipe.prompts import PromptFile
from potstill.recipe.student import Student
from potstill.recipe.task import Choice

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml") if path.name != "prices.yaml")
SERVED = {"answers": "", "served_labels": "negative,positive"}  # by loopback servers that answer with these
PRICED = "answers"  # its recipe names a price file
PROMPTS = {"orders": "recipes/samples/orders.jsonl", "sums": "sums.jsonl"}  # in place of what `make` would write
TESTED = {"orders": "recipes/samples/orders_test.jsonl", "sums": "sums.jsonl"}

NO_STUDENT, NO_RESCUE = "there is no student in", "the recipe has no 'rescue' section"
UNPRICED = "'generate.budget' needs a served teacher and a price file"
EXPECTED = {
    **{(name, "rescue"): NO_RESCUE for name in RECIPES},
    **{(name, "generate --budget 1"): UNPRICED for name in RECIPES if name != PRICED},
    ("answers", "chat"): NO_STUDENT,
}
"""(recipe, verb) -> what it says with exit code 2; all others exit with 0."""


@dataclass(frozen=True)
class Kit:
    """A shipped recipe, what stands in for what it needs, and its run folder."""

    name: str
    run: Path
    overrides: tuple[str, ...]

    def words(self, verb: str) -> list[str]:
        name, *more = verb.split()
        if name == "chat":
            return ["chat", str(self.run)]
        sets = [word for override in self.overrides for word in ("--set", override)]
        return [name, str(ROOT / "recipes" / f"{self.name}.yaml"), "--run", str(self.run), *sets, *more]


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with ExitStack() as servers:
        yield {name: servers.enter_context(loopback(choices=choices)).url for name, choices in SERVED.items()}


@pytest.fixture(params=RECIPES, scope="module")
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, urls: Any) -> Kit:
    folder = tmp_path_factory.mktemp(request.param)
    overrides = stand_ins(request.param, folder, roomy(tiny_model, folder), urls)
    return Kit(request.param, folder / "run", tuple(f"{key}={value}" for key, value in overrides.items()))


def roomy(model: Path, folder: Path) -> Path:
    """The tiny model with as many positions as the real ones have: its tokens are bytes, so that prompts are long."""
    shutil.copytree(model, folder / "model")
    config = json.loads((model / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return folder / "model"


def stand_ins(name: str, folder: Path, model: Path, urls: dict[str, str]) -> dict[str, Any]:
    """What is overridden of the recipe, by its keys."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert isinstance(recipe.prompts, PromptFile)
    if name == "sums":
        rows = [{"text": f"{a}+{a + 1}+7=", "sum": str(2 * a + 8)} for a in range(10, 26)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = few(folder, PROMPTS.get(name, recipe.prompts.source))
    of_task = of_choices(recipe, model) if isinstance(recipe.task, Choice) else of_texts(recipe, folder, model, source)
    if name in urls:
        of_task["teacher.engine.url"] = urls[name]
    if isinstance(recipe.student, Student):
        of_task |= {"student.start": model, "train.epochs": 1, "evaluate.resamples": 100}
        of_task |= {"student.layers": 2} if recipe.student.layers else {}
    return {"prompts.source": source, **of_task}


def of_choices(recipe: Recipe, model: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts.split": "{train: 24, validation: 8, test: 16}", "teacher.examples": "[]"}
    found |= {"teacher.model": model, "verify.checks": "[{kind: confidence, at_least: 0.5}]"}
    found |= {"evaluate.generate_prompts": 2, "evaluate.uncached_prompts": 2}
    if "encoder" in recipe.arms:
        student = {"kind": "encoder", "shape": {"layers": 1, "hidden": 16}, "tokenizer": str(model)}
        found["arms"] = json.dumps({"encoder": {"student": student, "train": recipe.arms["encoder"]["train"]}})
    return found


def of_texts(recipe: Recipe, folder: Path, model: Path, source: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"verify.processes": 1} if recipe.verify else {}
    tested = source
    if recipe.evaluate and recipe.evaluate.prompts:
        tested = few(folder, TESTED.get(recipe.name, recipe.evaluate.prompts.source), start="tested-")
        found |= {"evaluate.max_tokens": 4, "evaluate.prompts.source": tested, "evaluate.processes": 1}
    if recipe.select.evaluation:
        found["select.evaluation.source"] = tested
    if recipe.train.learn == "reasoning and answer" and recipe.name != "sums":  # whose own student writes thoughts
        found["student.template"] = json.dumps(load_recipe(ROOT / "recipes" / "sums.yaml").student.template)
    if isinstance(recipe.train.method, LogitKd):
        found["train.scored_by"] = f"{{model: '{model}', licence: mit}}"
    if recipe.train.signal.kind != "live":
        found["train.signals_folder"] = folder / "signals"
    if recipe.name not in SERVED:
        found["teacher.engine"] = f"{{kind: canned, answers: '{canned(folder, recipe, source, tested)}'}}"
    return found


def few(folder: Path, source: str, start: str = "") -> Path:
    """The first rows of a file."""
    path = folder / source if (folder / source).is_file() else ROOT / source
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)[:120]
    (folder / f"{start}{path.name}").write_text("".join(rows), encoding="utf-8")
    return folder / f"{start}{path.name}"


def canned(folder: Path, recipe: Recipe, *sources: Path) -> Path:
    """A teacher that knows every answer, and thinks where the recipe wants thoughts."""
    thought = "<think>one after the other</think>" if recipe.train.learn == "reasoning and answer" else ""
    with (folder / "canned.jsonl").open("w") as lines:
        for row in (
            json.loads(line) for path in sources if path.suffix == ".jsonl" for line in path.read_text().splitlines()
        ):
            answer = f"{thought}{row.get('gold', row.get('sum'))}"
            lines.write(json.dumps({"prompt": row["text"], "answer": answer}) + "\n")
    return folder / "canned.jsonl"


BEFORE = {
    "verify": "holds no answers yet; let the teacher write: potstill generate",
    "export": "yet; potstill",
    "report": "there is no run in",
    "chat": "is not a run folder",
}
VERBS = ("check --probe 2", "generate --limit 2", "generate --budget 1", "run", "rescue", "report", "export", "chat")


def test_verbs(kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    for verb, said in BEFORE.items():
        assert execute(kit.words(verb)) == 2, verb
        assert said in one_sentence(capsys, verb)
    assert not kit.run.exists()
    for verb in VERBS:
        monkeypatch.setattr("sys.stdin", io.StringIO("good film\nbad film\n"))
        expected = EXPECTED.get((kit.name, verb))
        code = execute(kit.words(verb))
        assert code == (2 if expected else 0), (verb, capsys.readouterr().err)
        if expected:
            assert expected in one_sentence(capsys, verb)
        else:
            out, error = capsys.readouterr()
            assert error == "" and out, verb


def one_sentence(capsys: pytest.CaptureFixture[str], verb: str) -> str:
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and "Traceback" not in said, (verb, said)
    return said
