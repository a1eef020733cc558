"""A prompt for which a model has no position or no embedding is known before anybody is paid, and spoils no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from student_runs import kept_answers, recipe_in, refusal
from transformers import AutoTokenizer

from potstill.cli import execute
from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.records import Message

STRANGE = "<|tool|>"
KD = {"method": {"kind": "logit_kd"}, "epochs": 1, "batch_size": 8}


@pytest.fixture
def strange(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with a token more than its embeddings have rows."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = tmp_path / "strange"
    shutil.copytree(tiny_model, folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [STRANGE]})
    tokenizer.save_pretrained(folder)
    return folder


def written_by_the_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ m['content'] }}", STRANGE + "{{ m['content'] }}", 1))


def short(folder: Path, tiny_model: Path, positions: int) -> Path:
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return folder


def with_long_prompts(path: Path, ids: tuple[int, ...]) -> None:
    rows = [json.loads(line) for line in (path.parent / "learn.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (path.parent / "answers.jsonl").read_text().splitlines()]
    for at in ids:
        long = f"{rows[at]['q']} {'nap ' * 40}".strip()
        said += [{"prompt": long, "answer": rows[at]["a"]}] * 3
        rows[at]["q"] = long
    (path.parent / "learn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path.parent / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_token_without_embedding_is_named_where_the_template_writes_it(
    who: str, strange: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written_by_the_template(strange)
    changes: dict[str, Any] = {}
    if who == "teacher":
        changes["teacher"] = {"model": str(strange), "licence": "mit", "engine": {"kind": "local"}}
    recipe_in(tmp_path, strange if who == "student" else tiny_model, **changes)
    for verb in ("check", "run"):
        said = refusal(verb, tmp_path / "recipe.yaml", [], capsys)
        assert f"the {who}'s token '{STRANGE}' has the number" in said and "resize_token_embeddings" in said
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_a_scorer_without_an_embedding_for_its_marks_is_refused(
    strange: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written_by_the_template(strange)
    recipe_in(tmp_path, tiny_model, train={**KD, "scored_by": {"model": str(strange), "licence": "mit"}})
    assert f"token '{STRANGE}' has the number" in refusal("check", tmp_path / "recipe.yaml", [], capsys)


def test_a_token_that_nothing_uses_is_no_fault(strange: Path, tmp_path: Path) -> None:
    """Gemma 3 1B has such a one, for images."""
    recipe_in(tmp_path, strange)
    assert execute(["check", str(tmp_path / "recipe.yaml")]) == 0
    codec = codec_of(strange, None, name="student")
    codec.prefix((Message(role="user", content="good"),))
    with pytest.raises(InputError, match="has the number"):
        codec.prefix((Message(role="user", content=f"good {STRANGE}"),))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("student.start", "1 may be written (an answer)"),
        ("train.scored_by", "1 may be written (an answer)"),
        ("teacher.model", "12 may be written (generate.max_tokens)"),
    ],
)
def test_check_names_a_prompt_that_is_too_long(
    key: str, said: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, changes = short(tmp_path / "short", tiny_model, 40), dict[str, Any]()
    if key == "train.scored_by":
        changes["train"] = {**KD, "scored_by": {"model": str(model), "licence": "mit"}}
    if key == "teacher.model":
        changes["teacher"] = {"model": str(model), "licence": "mit", "engine": {"kind": "local"}}
        changes["generate"] = {"n": 1, "max_tokens": 12}
    recipe_in(tmp_path, model if key == "student.start" else tiny_model, **changes)
    path = tmp_path / "recipe.yaml"
    assert execute(["check", str(path)]) == 0
    capsys.readouterr()
    with_long_prompts(path, (3,))
    error = refusal("check", path, [], capsys)
    assert f"{said}, but {key} '{model}' has 40 positions" in error and "is too long: it has" in error


def test_test_prompts_leave_room_for_their_answers(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_in(tmp_path, short(tmp_path / "short", tiny_model, 40))
    error = refusal("check", tmp_path / "recipe.yaml", ["evaluate.max_tokens=39"], capsys)
    assert "39 may be written (evaluate.max_tokens), but student.start" in error


@pytest.mark.parametrize("scored", [False, True])
def test_training_leaves_out_what_is_too_long_and_counts_it(scored: bool, tmp_path: Path, tiny_model: Path) -> None:
    model = short(tmp_path / "short", tiny_model, 40)
    train: dict[str, Any] = {"epochs": 1, "batch_size": 8}
    if scored:
        train = {**KD, "scored_by": {"model": str(model), "licence": "mit"}}
    recipe_in(tmp_path, tiny_model if scored else model, train=train)
    with_long_prompts(tmp_path / "recipe.yaml", (3, 5))
    recipe, run = load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run"
    kept_answers(recipe, run)
    told: list[str] = []
    Run(recipe, run, lambda progress: told.append(progress.note)).train()
    who = "teacher" if scored else "student"
    reason = f"it is longer than the {who}'s 40 positions"
    left = json.loads((run / "arms" / "student" / "trained.json").read_text())["left_out"]
    assert left == {reason: 2} and any(f"2 left out: {reason}" in note for note in told)


def test_rollouts_leave_room_for_themselves(tmp_path: Path, tiny_model: Path) -> None:
    model = short(tmp_path / "short", tiny_model, 40)
    train = {**KD, "scored_by": {"model": str(tiny_model), "licence": "mit"}, "on_policy": {"max_tokens": 39}}
    train["method"] = {"kind": "logit_kd", "alpha": 0.0}
    recipe = recipe_in(tmp_path, model, train=train)
    kept_answers(recipe, tmp_path / "run")
    with pytest.raises(InputError, match=r"there is no answer to learn; \d+ left out: it is longer than the student's"):
        Run(recipe, tmp_path / "run").train()
