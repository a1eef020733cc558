"""What choosing among a teacher's answers is worth: one student, one number of updates, four sets of answers.

A small model half-knows how to turn order e-mails into JSON objects (recipes/orders.yaml). Its answers are learnt

    all             every answer to every e-mail
    random          as many of these as the checks accept, drawn anew with every seed
    accepted        those that the checks accept: a JSON schema, and every value stands in the e-mail
    accepted of 4x  those that they accept of four times as many answers to the same e-mails

An answer that was given twice to an e-mail is learnt once, as `potstill verify` keeps it. The exam are e-mails that
nobody trained on, and the marks come from the right answers, which no check has seen.

    make bench-select        about an hour on two cores, writes docs/results/selection.md; goes on where it was stopped

Dimension key: S seeds, Q questions, B resamples.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.evaluate.metrics import interval
from potstill.models.load import codec_of
from potstill.models.load import load as load_model
from potstill.models.locate import locate
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.records import Message, Progress
from potstill.store.requests import Requests
from potstill.store.run import open_run

ROOT = Path(__file__).parents[1]
FIELDS = ("name", "item", "quantity", "city", "total")
ARMS = ("all", "random", "accepted", "accepted of 4x")
LAYERS, BATCH, RESAMPLES = 8, 8, 10_000
READING = "## Reading it"
"""What stands below it on the page is written by hand and kept."""


@dataclass(frozen=True, slots=True)
class Exam:
    """Per question: whether every field was right, and the share of fields that were."""

    exact_Q: NDArray[np.float64]
    fields_Q: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-select")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument(
        "--samples", type=int, default=4, help="answers per prompt; the last arm has four times as many"
    )
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    make = [sys.executable, str(ROOT / "scripts" / "make_orders.py"), str(asked.work), "--seed", "7"]
    subprocess.run([*make, "--count", str(asked.prompts), "--test", str(asked.questions)], check=True)
    questions = [json.loads(line) for line in (asked.work / "orders_test.jsonl").read_text("utf-8").splitlines()]
    sets = answer_sets(asked.work, samples=asked.samples, seeds=asked.seeds)
    print({arm: [table.num_rows for table in tables] for arm, tables in sets.items()}, flush=True)
    exams: dict[str, list[Exam]] = {}
    steps: dict[str, int] = {}
    for seed in range(asked.seeds):
        for arm in ARMS:
            place = asked.work / f"{arm.replace(' ', '-')}-{seed}"
            table = sets[arm][seed]
            model, steps[arm] = taught(asked.work, table, place, seed=seed, steps=asked.steps)
            exams.setdefault(arm, []).append(examined(model, questions, place / "exam.json"))
            print(arm, seed, f"{exams[arm][-1].exact_Q.mean():.1%} exact", flush=True)
    teacher = teacher_exam(asked.work, questions)
    page = report(sets, steps, exams, teacher, questions, asked)
    print(page)
    if asked.write:
        said = asked.write.read_text(encoding="utf-8") if asked.write.is_file() else ""
        asked.write.write_text(page + "".join(said.partition(READING)[1:]), encoding="utf-8")


def recipe_of(work: Path, *more: str) -> Recipe:
    files = [
        f"prompts.source={work / 'orders.jsonl'}",
        f"evaluate.prompts.source={work / 'orders_test.jsonl'}",
        "select.evaluation=null",  # sentences of one mould overlap; the e-mails themselves are told apart by their text
        "select.pairs=false",
        "teacher.engine={kind: local, slots: 32}",
        f"student.layers={LAYERS}",
        "verify.processes=1",
    ]
    return load_recipe(ROOT / "recipes" / "orders.yaml", [*files, *more])


def answer_sets(work: Path, *, samples: int, seeds: int) -> dict[str, list[pa.Table]]:
    """The answers that each arm learns, a table for every seed."""
    place, four_times = work / "teacher", 4 * samples
    Run(recipe_of(work, f"generate.n={four_times}"), place, told).generate()
    chosen: dict[int, pa.Table] = {}
    for n in (samples, four_times):
        Run(recipe_of(work, f"generate.n={n}", f"select.keep={n}"), place).verify()
        chosen[n] = pq.read_table(place / "examples" / "selected.parquet", columns=["prompt_id", "index", "messages"])
    every = pq.read_table(place / "examples" / "answers.parquet", columns=["prompt_id", "index", "messages"])
    once = {
        (row["prompt_id"], row["messages"][-1]["content"]): i for i, row in reversed(list(enumerate(rows_of(every))))
    }
    first = sorted(i for i in once.values() if every["index"][i].as_py() < samples)
    accepted = chosen[samples]
    drawn = [sorted(random.Random(f"subset {seed}").sample(first, accepted.num_rows)) for seed in range(seeds)]
    return {
        "all": [every.take(first)] * seeds,
        "random": [every.take(some) for some in drawn],
        "accepted": [accepted] * seeds,
        "accepted of 4x": [chosen[four_times]] * seeds,
    }


def taught(work: Path, answers: pa.Table, place: Path, *, seed: int, steps: int) -> tuple[Path, int]:
    """The model folder of a student that learnt the answers, by the road of `potstill train`, and its updates: whole
    epochs, so as near to `steps` as these allow."""
    learnt = answers.num_rows - math.ceil(answers.num_rows / 20)  # one in twenty is held back for validation
    epochs = max(1, round(steps / math.ceil(learnt / BATCH)))
    recipe = recipe_of(work, f"seed={seed}", f"train.epochs={epochs}", f"train.batch_size={BATCH}")
    with open_run(place, recipe) as run, Requests(run.ledger):
        run.selected.parent.mkdir(exist_ok=True)
        pq.write_table(answers, run.selected)
    model = Run(recipe, place).train()["student"]
    return model, json.loads((place / "arms" / "student" / "trained.json").read_text("utf-8"))["steps"]


def examined(model: Path, questions: Sequence[dict[str, str]], kept: Path) -> Exam:
    """The student's greedy answers against the right ones; kept, so that a stopped bench goes on."""
    if not kept.is_file():
        loaded = load_model(locate(str(model)))
        codec = codec_of(loaded.folder, None, name="student")
        prompts = [codec.prefix([Message(role="user", content=question["text"])]) for question in questions]
        slots = Rollouts(
            loaded.model,
            slots=64,
            capacity_tokens=max(map(len, prompts)) + 80,
            end_ids=[codec.end_of_turn("x")],
        )
        written = slots.roll_out(prompts, sampling=Sampling(temperature=0), max_new_tokens=80)
        texts = [codec.tokenizer.decode(list(one.ids), skip_special_tokens=True) for one in written]
        kept.write_text(json.dumps(texts), encoding="utf-8")
    return marked(json.loads(kept.read_text("utf-8")), questions)


def teacher_exam(work: Path, questions: Sequence[dict[str, str]]) -> Exam:
    """The teacher's greedy answers to the same questions, with its instructions and examples."""
    recipe = recipe_of(work, "generate.n=1", "generate.temperature=0.0", "generate.truncated=keep")
    assert recipe.evaluate is not None
    asking = recipe.model_copy(update={"prompts": recipe.evaluate.prompts, "verify": None, "student": None})
    done = Run(asking.model_copy(update={"evaluate": None}), work / "teacher-exam", told).generate()
    said = {
        row["messages"][0]["content"]: row["messages"][-1]["content"] for row in rows_of(pq.read_table(done.answers))
    }
    return marked([said.get(question["text"], "") for question in questions], questions)


def marked(texts: Sequence[str], questions: Sequence[dict[str, str]]) -> Exam:
    fields = np.array([right_fields(text, q["gold"]) for text, q in zip(texts, questions, strict=True)])
    return Exam((fields == len(FIELDS)).astype(np.float64), fields / len(FIELDS))


def right_fields(text: str, gold: str) -> int:
    """How many of the five fields are right; a sixth key makes none of them right."""
    try:
        said: Any = json.loads(text)
    except ValueError:
        return 0
    wanted = json.loads(gold)
    if not isinstance(said, dict) or not set(said) <= set(wanted):
        return 0
    return sum(said.get(field) == wanted[field] and type(said[field]) is type(wanted[field]) for field in FIELDS)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist()


def told(progress: Progress) -> None:
    if progress.stage == "generate" and progress.done and progress.done % 60 == 0:
        print(progress.what, progress.done, progress.total, progress.note, flush=True)


def two_levels(values_SQ: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean, seeds and questions drawn with replacement independently of each other."""
    draw = np.random.default_rng(0)
    seeds, count = values_SQ.shape
    means = np.empty(RESAMPLES)
    for b in range(RESAMPLES):
        mean_Q = values_SQ[draw.integers(0, seeds, seeds)].mean(axis=0)
        means[b] = mean_Q[draw.integers(0, count, count)].mean()
    return interval(means)


def constant_answer(questions: Sequence[dict[str, str]]) -> tuple[float, float]:
    """How often the commonest answer is right, and the share of fields that the commonest values get right."""
    golds = [json.loads(question["gold"]) for question in questions]
    whole = Counter(question["gold"] for question in questions).most_common(1)[0][1] / len(golds)
    fields = [Counter(gold[field] for gold in golds).most_common(1)[0][1] / len(golds) for field in FIELDS]
    return whole, sum(fields) / len(fields)


def report(
    sets: dict[str, list[pa.Table]],
    steps: dict[str, int],
    exams: dict[str, list[Exam]],
    teacher: Exam,
    questions: Sequence[dict[str, str]],
    asked: argparse.Namespace,
) -> str:
    exact_SQ = {arm: np.stack([exam.exact_Q for exam in of]) for arm, of in exams.items()}
    fields_SQ = {arm: np.stack([exam.fields_Q for exam in of]) for arm, of in exams.items()}
    gold = {
        order["text"]: order["gold"]
        for order in map(json.loads, (asked.work / "orders.jsonl").read_text("utf-8").splitlines())
    }
    lines = [
        "# Which of a teacher's answers to learn",
        "",
        f"`make bench-select` (torch {version('torch')}, {platform.machine()}):",
        f"SmolLM2-135M writes {asked.samples} answers to each of {asked.prompts} order e-mails at temperature 0.3 (and",
        f"{4 * asked.samples} for the last arm). Its first {LAYERS} of 30 layers learn them without instructions and",
        f"examples: {asked.seeds} seeds an arm, about {asked.steps} updates of {BATCH} answers.",
        "",
        f"The exam are {len(questions):,} e-mails whose texts are in no training set, answered greedily; an",
        "answer is right if all five fields are. No check saw a right answer. Intervals are 95 %: seeds and questions",
        "resampled, each for itself; with so few seeds they are rough.",
        "",
        "| learnt | answers | of them right | updates | exact | by seed | fields right |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        rows = [row for table in sets[arm] for row in rows_of(table)]
        right = sum(
            right_fields(row["messages"][-1]["content"], gold[row["messages"][0]["content"]]) == len(FIELDS)
            for row in rows
        )
        seeds = " ".join(f"{value:.1%}" for value in exact_SQ[arm].mean(axis=1))
        lines.append(
            f"| {arm} | {sets[arm][0].num_rows} | {right / len(rows):.0%} | {steps[arm]} "
            f"| {spoken(exact_SQ[arm])} | {seeds} | {fields_SQ[arm].mean():.1%} |"
        )
    whole, part = constant_answer(questions)
    lines += [
        f"| the teacher itself | | | | {spoken(teacher.exact_Q[None])} | | {teacher.fields_Q.mean():.1%} |",
        f"| always the commonest answer | | | | {whole:.1%} | | {part:.1%} (commonest values) |",
        "",
        "Differences in exact answers, in points:",
        "",
        "| | difference |",
        "|---|---|",
        *(
            f"| {b} - {a} | {100 * (exact_SQ[b] - exact_SQ[a]).mean():+.1f} "
            f"({', '.join(f'{100 * end:+.1f}' for end in two_levels(exact_SQ[b] - exact_SQ[a]))}) |"
            for a, b in combinations(ARMS, 2)
        ),
        "",
    ]
    return "\n".join(lines)


def spoken(values_SQ: NDArray[np.float64]) -> str:
    low, high = two_levels(values_SQ)
    return f"{values_SQ.mean():.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
