"""A run folder of a task of kind text, made through the library: canned teacher, real ledger, real checks, real scorer.
The answers of the other arms are canned too, so that no model need be trained."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from potstill.evaluate.stage import compare
from potstill.generate.ask import answered
from potstill.pipeline import Run
from potstill.recipe import GenerationRequest, Recipe, load_recipe
from potstill.recipe.generate import Generate
from potstill.recipe.teacher import Canned, Teacher
from potstill.records import unwatched
from potstill.store.run import RunFolder
from potstill.store.stages import Stages

NAMES = ("Ana Ruiz", "Tom Becker", "Lena Novak", "Omar Haddad", "Grace Lim", "Paulo Reis")
ITEMS = ("desk lamps", "office chairs", "coffee mugs", "garden hoses", "wall clocks")
CITIES = ("Lisbon", "Hamburg", "Prague", "Cairo", "Sofia", "Porto")
SHAPE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "quantity": {"type": "integer"}, "total": {"type": "integer"}},
    "required": ["name", "item", "quantity", "city", "total"],
}
SKILL = {"teacher": 0.5, "student": 0.75, "four": 0.6, "from_scratch": 0.3, "sft": 0.7, "base": 0.0}
TRAINED = ("student", "four", "from_scratch", "sft")


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
    tested = {"source": str(write_lines(folder / "test.jsonl", test)), "licence": "own", "columns": columns}
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
        "train": {"method": {"kind": "logit_kd"}, "scored_by": {"model": "a/scorer", "licence": "apache-2.0"}},
        "controls": ["base", "from_scratch", "sft"],
        "arms": {"four": {"student.layers": 4}},
        "evaluate": {
            "prompts": tested,
            "checks": [{"kind": "json", "as_reference": True}],
            "processes": 1,
            "resamples": 500,
        },
        **changes,
    }
    path = folder / "orders.yaml"
    with path.open("w") as file:
        YAML().dump({key: value for key, value in values.items() if value is not None}, file)
    return load_recipe(path)


def made_run(folder: Path, recipe: Recipe, *, student: bool = True, tests: bool = True) -> RunFolder:
    """The run folder under `folder`, as far as asked for."""
    made = Run(recipe, folder / "run")
    made.generate()
    if recipe.verify is not None:
        made.verify()
    if student:
        train(made.folder)
    if tests:
        evaluate(folder, recipe, made.folder)
    return made.folder


def train(run: RunFolder) -> None:
    draw = random.Random(1)
    rows: list[dict[str, Any]] = []
    for arm in TRAINED:
        run.arm_model(arm).mkdir(parents=True, exist_ok=True)
        learned = {"arm": arm, "fingerprint": f"{arm}-1", "examples": 41, "layers": [*range(15)], "of": 30}
        learned |= {"steps": 120, "tokens": 108_000, "seconds": 93.4, "left_out": {}}
        if arm == "four":
            learned["chose"] = {"metric": "nats_per_token", "score": 0.31415, "step": 90, "stopped_early": True}
        run.arm(arm).mkdir(parents=True, exist_ok=True)
        (run.arm(arm) / "trained.json").write_text(json.dumps(learned))
        for i in range(1, 121):
            rows.append({"arm": arm, "step": i, "tokens": 900 * i, "loss": 2.0 * 0.97**i + draw.random() / 9})
            if i % 30 == 0:
                rows[-1]["validation_nats_per_token"] = 0.8 * float(rows[-1]["loss"])
    write_lines(run.metrics, rows)
    with Stages(run.ledger) as stages:
        stages.finish("generate", "made up", 12.0)
        for arm in TRAINED:
            stages.finish(f"train:{arm}", f"{arm}-1", 93.4)


def evaluate(folder: Path, recipe: Recipe, run: RunFolder) -> None:
    """As the stage does, with arms whose answers are canned."""
    assert recipe.test_prompts is not None
    for arm in SKILL:
        canned = Canned(kind="canned", answers=str(folder / f"{arm}.jsonl"))
        once = Generate(n=1, temperature=0.0)
        writer = Teacher(model=arm, licence="apache-2.0", engine=canned)
        request = GenerationRequest(prompts=recipe.test_prompts, teacher=writer, generate=once, seed=recipe.seed)
        answered(request, run.test(arm), unwatched)
    with Stages(run.ledger) as stages:
        compare(recipe, run, stages, list(SKILL), unwatched)
