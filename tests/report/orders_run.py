"""A run folder of a data recipe, made through the library: canned teacher, real ledger, real checks, real exam. The
student's and the base's answers are canned too, so that no model need be trained."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from potstill.evaluate.exam import compare_papers, marked
from potstill.harvest import harvest, sift
from potstill.lessons import _sitting  # pyright: ignore[reportPrivateUsage]
from potstill.recipe import load_recipe
from potstill.recipe.teacher import Canned, Teacher
from potstill.recipe.whole import Recipe

NAMES = ("Ana Ruiz", "Tom Becker", "Lena Novak", "Omar Haddad", "Grace Lim", "Paulo Reis")
ITEMS = ("desk lamps", "office chairs", "coffee mugs", "garden hoses", "wall clocks")
CITIES = ("Lisbon", "Hamburg", "Prague", "Cairo", "Sofia", "Porto")
SHAPE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "quantity": {"type": "integer"}, "total": {"type": "integer"}},
    "required": ["name", "item", "quantity", "city", "total"],
}
SKILL = {"teacher": 0.5, "student": 0.75, "base": 0.0}


def orders(count: int, seed: int) -> list[dict[str, str]]:
    draw, rows = random.Random(seed), {}
    while len(rows) < count:
        name, item, city = draw.choice(NAMES), draw.choice(ITEMS), draw.choice(CITIES)
        quantity, total = draw.randint(2, 60), draw.randint(10, 900)
        text = f"Order from {name}: {quantity} {item}, delivery to {city}, amount due {total} dollars. Thank you!"
        gold = {"name": name, "item": item, "quantity": quantity, "city": city, "total": total}
        rows[text] = {"text": text, "gold": json.dumps(gold)}
    return list(rows.values())


def answer(gold: str, skill: float, draw: random.Random) -> str:
    """The right object, or one of the ways in which small models miss it."""
    if draw.random() < skill:
        return gold
    order: dict[str, Any] = json.loads(gold)
    match draw.randrange(4):
        case 0:
            return json.dumps({**order, "city": "Madrid"})
        case 1:
            return json.dumps({**order, "quantity": str(order["quantity"])})
        case 2:
            return f"Sure! Here is the order:\n{gold[:-12]}"
        case _:
            return json.dumps({**order, "total": order["quantity"]})


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_in(
    folder: Path, *, prompts: int = 30, tests: int = 40, n: int = 4, hostile: str = "", **changes: Any
) -> Recipe:
    """`hostile` stands in every prompt and every answer of the training prompts, and in the exam's."""
    made = orders(prompts + tests, seed=3)
    for row in made:
        row["text"] += hostile
    learn, test = made[:prompts], made[prompts:]
    draw = random.Random(5)
    skills = [draw.choice((0.0, 0.3, 0.6, 1.0)) for _ in learn]
    lines = [
        {"prompt": row["text"], "answer": answer(row["gold"], skill, draw) + hostile}
        for row, skill in zip(learn, skills, strict=True)
        for _ in range(n)
    ]
    write_lines(folder / "answers.jsonl", lines)
    for arm, skill in SKILL.items():
        said = [{"prompt": row["text"], "answer": answer(row["gold"], skill, draw) + hostile} for row in test]
        write_lines(folder / f"{arm}.jsonl", said)
    columns = {"text": "text", "reference": "gold"}
    paper = {"source": str(write_lines(folder / "test.jsonl", test)), "licence": "own", "columns": columns}
    values: dict[str, Any] = {
        "name": "orders",
        "prompts": {
            "source": str(write_lines(folder / "learn.jsonl", learn)),
            "licence": "cc-by-4.0",
            "columns": columns,
        },
        "teacher": {
            "model": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "licence": "apache-2.0",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": n},
        "verify": {"checks": [{"kind": "json", "shape": SHAPE}, {"kind": "grounded"}], "processes": 1},
        "select": {"keep": 2},
        "student": {"start": "a/model-that-is-not-here", "licence": "apache-2.0", "layers": 15},
        "evaluate": {"prompts": paper, "checks": [{"kind": "json", "as_reference": True}], "processes": 1},
        **changes,
    }
    path = folder / "orders.yaml"
    with path.open("w") as file:
        YAML().dump({key: value for key, value in values.items() if value is not None}, file)
    return load_recipe(path)


def made_run(folder: Path, recipe: Recipe, *, student: bool = True, exam: bool = True) -> Path:
    """The run folder under `folder`, as far as asked for."""
    run = folder / "run"
    harvest(recipe, folder=run)
    if recipe.verify is not None:
        sift(recipe, folder=run)
    if student:
        draw = random.Random(1)
        rows = [
            {"arm": "student", "step": i, "tokens": 900 * i, "loss": 2.0 * 0.97**i + draw.random() / 9}
            for i in range(1, 121)
        ]
        for row in rows[29::30]:
            row["validation_nats_per_token"] = 0.8 * float(row["loss"])
        write_lines(run / "metrics.jsonl", rows)
        learnt = {
            "fingerprint": "f" * 64,
            "answers": 41,
            "layers": [*range(15)],
            "steps": 120,
            "tokens": 108_000,
            "seconds": 93.4,
        }
        (run / "student.json").write_text(json.dumps(learnt))
    if exam:
        sit(folder, recipe, run)
    return run


def sit(folder: Path, recipe: Recipe, run: Path) -> None:
    """As `lessons.examine` does, with canned arms."""
    assert recipe.evaluate is not None
    papers: dict[str, Any] = {}
    for arm in SKILL:
        canned = Canned(kind="canned", answers=str(folder / f"{arm}.jsonl"))
        writer = Teacher(model=arm, licence="apache-2.0", engine=canned)
        sitting = _sitting(recipe, recipe.evaluate, None, "").model_copy(update={"teacher": writer})
        harvest(sitting, folder=run / "exam" / arm)
        papers[arm] = marked(run / "exam" / arm, recipe.evaluate)
    scores = {"recipe": recipe.name, "student_fingerprint": "f" * 64}
    scores |= compare_papers(papers, count=500, seed=0)
    (run / "scores.json").write_text(json.dumps(scores, indent=1))
