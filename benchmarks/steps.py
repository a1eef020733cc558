"""What steps are worth to a student: worked sums, learnt with their steps and without, by the same blank student.

The recipe is recipes/sums.yaml, and everything goes through the verbs of `Run`. A seed draws the
sums, the weights and the order of training; the exam is one and the same. Answer-only learns twice: in as many updates
as with steps, and with at least as many tokens that bear loss.

    make bench-steps        3 seeds, two processes of one thread, writes docs/results/steps.md

Dimension key: S seeds, N problems of the exam, B resamples.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from pages import computed_in

from potstill.evaluate.metrics import Array, interval, resamples
from potstill.evaluate.texts import check_answers
from potstill.models.load import codec_of
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.store.examples import read_examples
from potstill.store.requests import Requests
from potstill.train.rows import example_rows

ROOT = Path(__file__).parents[1]
DRAWS = 4000
STEPS, SAME_UPDATES, SAME_TOKENS = "steps and answer", "answer, as many updates", "answer, as many trained tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is learnt and asked; the default is the bench, a test takes less."""

    sums: int = 5000
    problems: int = 600
    layers: int = 4
    width: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """One student: what it took, and its exam. `read` and `trained` are tokens, those that bear loss among them;
    `thought`: for every problem, whether its reasoning is the program's to the letter."""

    arm: str
    seed: int
    epochs: int
    updates: int
    read: int
    trained: int
    cpu_seconds: float
    right: tuple[bool, ...]
    thought: tuple[bool, ...]
    wrong: Mapping[str, int]
    teacher: float
    base: float


def recipe_of(data: Path, seed: int, *overrides: str) -> Recipe:
    files = {
        "prompts.source": "sums.jsonl",
        "teacher.engine.answers": "answers.jsonl",
        "student.start": "student",
        "evaluate.prompts.source": "sums_test.jsonl",
    }
    named = [f"{key}={data / name}" for key, name in files.items()]
    return load_recipe(ROOT / "recipes" / "sums.yaml", [*named, f"seed={seed}", *overrides])


def prepare(work: Path, seed: int, size: Size) -> Path:
    """The seed's folder with its data and the teacher's answers, asked and checked once for all arms."""
    place = work / f"seed-{seed}"
    if not (place / "data" / "student" / "model.safetensors").is_file():
        words = {"count": size.sums, "test": size.problems, "seed": seed, "layers": size.layers, "width": size.width}
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        script = str(ROOT / "scripts" / "make_sums.py")
        subprocess.run([sys.executable, script, str(place / "data"), *options], check=True, capture_output=True)
    recipe = recipe_of(place / "data", seed)
    Run(recipe, place / "answers").generate()
    Run(recipe, place / "answers").verify()
    return place


def lengths(place: Path, recipe: Recipe, *, reasoning: bool) -> tuple[float, float]:
    """Tokens of an example, in the mean: read, and bearing loss."""
    assert recipe.student is not None
    codec = codec_of(place / "data" / "student", recipe.student.template, name="student")
    rows = example_rows(list(read_examples(selected(place / "answers"))), codec, reasoning=reasoning)
    return float(np.mean([row.tokens for row in rows])), float(np.mean([len(row.target) for row in rows]))


def selected(folder: Path) -> Path:
    return folder / "examples" / "selected.parquet"


def taught(work: Path, seed: int, arm: str) -> Taught:
    """Learn and sit the exam in a run folder of its own; what is there already is not done again."""
    torch.set_num_threads(1)
    place = work / f"seed-{seed}"
    plain = recipe_of(place / "data", seed)
    trained = {reasoning: lengths(place, plain, reasoning=reasoning) for reasoning in (True, False)}
    epochs = plain.train.epochs
    if arm == SAME_TOKENS:
        epochs = math.ceil(epochs * trained[True][1] / trained[False][1])
    learn = plain.train.learn if arm == STEPS else "answer"
    recipe = recipe_of(place / "data", seed, f"train.learn={learn}", f"train.epochs={epochs}")
    run, known = place / arm.replace(", ", "-").replace(" ", "-"), recipe.model_dump_json()
    if (kept := run / "taught.json").is_file() and (before := json.loads(kept.read_text()))["recipe"] == known:
        return Taught(**before["taught"])
    start = time.process_time()
    if not selected(run).is_file():
        shutil.copytree(place / "answers", run, ignore=shutil.ignore_patterns(".lock"))
    Run(recipe, run).train()
    scores = Run(recipe, run).evaluate()
    done = json.loads((run / "arms" / "student" / "trained.json").read_text(encoding="utf-8"))
    read_each, trained_each = trained[arm == STEPS]
    assert recipe.evaluate is not None
    tested = check_answers(run / "test" / "student", recipe.evaluate)
    one = Taught(
        arm=arm,
        seed=seed,
        epochs=epochs,
        updates=done["steps"],
        read=done["tokens"],
        trained=round(done["tokens"] / read_each * trained_each),
        cpu_seconds=time.process_time() - start,
        right=tuple(tested.passed.values()),
        thought=thought_as_taught(run / "test" / "student", place / "data"),
        wrong=dict(tested.reasons),
        teacher=scores["arms"]["teacher"]["accuracy"]["value"],
        base=scores["arms"]["base"]["accuracy"]["value"],
    )
    kept.write_text(json.dumps({"recipe": known, "taught": asdict(one)}), encoding="utf-8")
    return one


def thought_as_taught(exam: Path, data: Path) -> tuple[bool, ...]:
    lines = (data / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    program = {row["prompt"]: row["answer"].partition("</think>")[0] for row in map(json.loads, lines)}
    with Requests(exam / "ledger.sqlite") as requests:
        found = {prompt.id: (prompt.text, sample.reasoning) for prompt, sample in requests.samples(most=1)}
        return tuple(
            f"<think>{found[i][1]}" == program[found[i][0]] if i in found else False for i in requests.prompt_ids()
        )


def problems(data: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (data / "sums_test.jsonl").read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, slots=True)
class Compared:
    """Every arm's right answers and the resamples of seeds and problems that all intervals share."""

    right_SN: Mapping[str, Array]
    seeds_BS: np.ndarray
    problems_BN: np.ndarray

    @staticmethod
    def of(right_SN: Mapping[str, Array]) -> Compared:
        seeds, count = next(iter(right_SN.values())).shape
        return Compared(right_SN, resamples(seeds, count=DRAWS, seed=0), resamples(count, count=DRAWS, seed=1))

    def share(self, arm: str, less: str | None = None, among_N: Array | None = None) -> tuple[float, float, float]:
        """The arm's share of right answers, or what it is above another's, among some problems: value and 95 %."""
        right_SN = self.right_SN[arm] - (0 if less is None else self.right_SN[less])
        among_N = np.ones(right_SN.shape[1]) if among_N is None else among_N
        right_BN = right_SN[self.seeds_BS].mean(axis=1)  # a resample of seeds, the mean over them
        drawn_BN = np.take_along_axis(right_BN, self.problems_BN, axis=1)
        weight_BN = among_N[self.problems_BN]
        draws_B = (drawn_BN * weight_BN).sum(axis=1) / weight_BN.sum(axis=1)
        return float((right_SN * among_N).sum() / (among_N.sum() * len(right_SN))), *interval(draws_B)


def page(found: Sequence[Taught], asked: Sequence[Mapping[str, object]], size: Size) -> str:
    arms = {arm: [one for one in found if one.arm == arm] for arm in (STEPS, SAME_UPDATES, SAME_TOKENS)}
    compared = Compared.of({arm: np.array([one.right for one in some], dtype=np.float64) for arm, some in arms.items()})
    seeds = {one.seed for one in found}
    minutes = [sum(one.cpu_seconds for one in found if one.seed == seed) / 60 for seed in seeds]
    answer, most = Counter(str(row["sum"]) for row in asked).most_common(1)[0]
    constant = f"The commonest answer of the exam, {answer}, is right on {100 * most / len(asked):.1f} % of it."
    return "\n".join(
        [
            HEAD,
            f"{seeds_of(arms[STEPS])} {size.sums:,} sums to learn (one in 20 held back), {len(asked)} in the exam, "
            f"{size.layers} layers of width {size.width}. {constant} The teacher is right on "
            f"{100 * min(one.teacher for one in found):.1f} %, the student before its first step on "
            f"{100 * max(one.base for one in found):.1f} %.",
            "",
            *arms_table(arms, compared),
            "",
            *differences(compared),
            "",
            *by_carry(compared, asked),
            "",
            reasoned(arms[STEPS]),
            "",
            FOOT,
            f"Where: up to {max(minutes):.1f} minutes of one core a seed, training and exams, in two processes of "
            f"one thread beside other work ({os.cpu_count()} cores), "
            f"{computed_in()}, Python {platform.python_version()}, "
            f"torch {version('torch')}, transformers {version('transformers')}.",
            "",
        ]
    )


def seeds_of(some: Sequence[Taught]) -> str:
    return "One seed, so that intervals are over problems alone:" if len(some) == 1 else f"{len(some)} seeds:"


def arms_table(arms: Mapping[str, Sequence[Taught]], compared: Compared) -> list[str]:
    lines = [
        "| learnt | epochs | updates | tokens read | tokens trained | right (95 %) | by seed |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for arm, some in arms.items():
        one, (value, low, high) = some[0], compared.share(arm)
        read, trained = (np.mean([getattr(each, name) for each in some]) for name in ("read", "trained"))
        each_seed = ", ".join(f"{100 * np.mean(each.right):.1f}" for each in some)
        lines.append(
            f"| {arm} | {one.epochs} | {one.updates:,} | {read:,.0f} | {trained:,.0f} | "
            f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}) | {each_seed} |"
        )
    return lines


def differences(compared: Compared) -> list[str]:
    lines = ["| paired difference | points (95 %) |", "|---|---|"]
    for more, less in ((STEPS, SAME_UPDATES), (STEPS, SAME_TOKENS), (SAME_TOKENS, SAME_UPDATES)):
        lines.append(f"| {more} - {less} | {points(*compared.share(more, less))} |")
    return lines


def by_carry(compared: Compared, asked: Sequence[Mapping[str, object]]) -> list[str]:
    """A column an arm, a row for what goes from the units to the tens."""
    shown = (STEPS, SAME_UPDATES, SAME_TOKENS)
    lines = [
        f"| carried | problems | {' | '.join(shown)} | steps - as many trained tokens |",
        "|---:|---:|---|---|---|---|",
    ]
    for carried in sorted({int(str(row["carried"])) for row in asked}):
        among_N = np.array([row["carried"] == carried for row in asked], dtype=np.float64)
        shares = " | ".join(f"{100 * compared.share(arm, among_N=among_N)[0]:.1f} %" for arm in shown)
        above = points(*compared.share(STEPS, SAME_TOKENS, among_N))
        lines.append(f"| {carried} | {among_N.sum():.0f} | {shares} | {above} |")
    return lines


def points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def reasoned(some: Sequence[Taught]) -> str:
    right, thought = (np.array([getattr(one, name) for one in some]) for name in ("right", "thought"))
    after = f"{100 * right[thought].mean():.1f} %" if thought.any() else "none"
    before = f"{100 * right[~thought].mean():.1f} %" if (~thought).any() else "none there"
    return (
        f"Of the reasonings that the students with steps wrote in the exam, {100 * thought.mean():.1f} % are the "
        f"program's to the letter. After those {after} of the answers are right; after the others, {before}."
    )


HEAD = """# Steps and answer, or the answer alone

`make bench-steps`: a teacher's answers to sums such as `47+85+26=`, learnt by the same student with its steps
(`train.learn: reasoning and answer`) and without (`train.learn: answer`), by the recipe
[recipes/sums.yaml](../../recipes/sums.yaml). **The teacher is a program** that adds column by column (`7+5=12+6=18`,
`4+8=12+2=14+1=15`, then `158`); so this page measures what steps are worth to a student, and not a language model's
skill. The student is a Llama with random weights that reads characters. Same sums, same weights at the start, same
settings; a seed draws all of them. The exam is the same for all: no sum of it, in any order of its terms, is among
those that are learnt, and the answer must be right to the letter. What the student thought before it is not looked at,
but counts towards the 48 tokens that it may write.

With its steps an example has about eight times the tokens that bear loss. So answer-only learns twice: in as many
updates on as many examples, and for so many epochs that it has trained on at least as many tokens.

Intervals resample seeds and problems together; a few seeds say little about other seeds, so look at each.
"""
FOOT = """\
**How the settings were chosen.** On another 10,000 sums and 300 problems, in batches of 32: with steps 94 % of the
300 were right after two epochs, with the answer alone 12 % after 16 epochs. The learning rate is the first that was
tried, with steps, and answer-only has the same: another may suit it better. The bench halves sums and batch for its
time, without a further try.

**Which steps matters.** With running totals in place of columns (`47+85=132`, `132+26=158`) the same student was right
on 9 % of those 300 after the same 20,000 examples. A column is a row of sums of one digit, which so small a student
learns; a sum of two-digit numbers in one breath is not. The first four layers of SmolLM2-135M in the student's place
were given up for their time, not for a result.

**Why not reasoning-gym's chain_sum.** Its sums mix plus and minus and go below zero, so that columns with carries are
no longer the way to do them, and its fixed sentence would be most of what the student reads.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sums", type=int, default=Size().sums)
    parser.add_argument("--problems", type=int, default=Size().problems)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench-steps"), help="run folders; they are gone on with"
    )
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    size = replace(Size(), sums=given.sums, problems=given.problems)
    jobs = list(product(range(given.seeds), (STEPS, SAME_TOKENS, SAME_UPDATES)))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as workers:
        places = list(
            workers.map(prepare, *zip(*((given.work, seed, size) for seed in range(given.seeds)), strict=True))
        )
        found = list(workers.map(taught, *zip(*((given.work, seed, arm) for seed, arm in jobs), strict=True)))
    said = page(found, problems(places[0] / "data"), size)
    print(said)
    if given.write:
        given.write.write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
