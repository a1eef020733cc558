"""The verification stage: calibrate the teacher, give every answer a verdict, keep what is accepted as examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from potstill.errors import InputError
from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Example, Progress, Prompt, Verdict, Watch
from potstill.store.examples import write_examples
from potstill.store.files import write_atomic
from potstill.store.ledger import Ledger
from potstill.store.run import Run
from potstill.verify.calibrate import Array, Calibration, fit_bias, fit_temperature
from potstill.verify.choices import judge


def verify(run: Run, ledger: Ledger, watch: Watch) -> None:
    """Writes calibration.json, the verdicts on the training prompts, and examples/train.parquet."""
    recipe, samples = run.recipe, ledger.samples()
    prompts = ledger.prompts()
    train = [p for p in prompts if p.split == "train"]
    calibration = calibrate(recipe, prompts, {i: s.choice_logp or () for i, s in samples.items()})
    write_atomic(run.calibration, json.dumps(asdict(calibration), indent=1))
    answers = [samples[p.id] for p in train]
    calibrated_NC = calibration.apply(np.array([s.choice_logp for s in answers]))
    verdicts = judge(answers, calibrated_NC, recipe.answers.choices, recipe.verify)
    examples = [_example(recipe, p, v) for p, v in zip(train, verdicts, strict=True) if v.accepted]
    if not examples:
        best = max(v.confidence for v in verdicts)
        raise InputError(
            f"verify: none of {len(verdicts)} teacher answers was accepted (highest confidence {best:.3f})",
            way_out="lower verify.min_confidence or verify.min_allowed_mass",
        )
    write_examples(run.examples, examples, recipe.answers.choices)
    ledger.put_verdicts(verdicts)
    note = f"{len(examples)} accepted"
    watch(Progress(stage="verify", what="verdicts", done=len(verdicts), total=len(verdicts), note=note))


def calibrate(recipe: ChoiceRecipe, prompts: Sequence[Prompt], logp: dict[str, tuple[float, ...]]) -> Calibration:
    """The prior from the training prompts (no labels), the temperature from people's validation answers where there are
    any. Without a prior in the recipe there is no bias."""

    def rows(some: Sequence[Prompt]) -> Array:
        return np.array([logp[p.id] for p in some])

    choices, prior = recipe.answers.choices, recipe.answers.prior
    bias = (0.0,) * len(choices)
    if prior is not None:
        bias = fit_bias(rows([p for p in prompts if p.split == "train"]), prior)
    graded = [p for p in prompts if p.split == "validation" and p.reference is not None]
    if not graded:
        return Calibration(bias=bias, temperature=1.0)
    answers = np.array([choices.index(str(p.reference)) for p in graded], dtype=np.int64)
    return Calibration(bias=bias, temperature=fit_temperature(rows(graded) + np.array(bias), answers))


def read_calibration(run: Run) -> Calibration:
    stored = json.loads(run.calibration.read_text(encoding="utf-8"))
    return Calibration(bias=tuple(stored["bias"]), temperature=stored["temperature"])


def _example(recipe: ChoiceRecipe, prompt: Prompt, verdict: Verdict) -> Example:
    return Example(
        prompt_id=prompt.id,
        messages=prompt.messages,
        answer=verdict.answer,
        choice_p=verdict.choice_p,
        teacher=recipe.teacher.model,
        licence=f"{recipe.teacher.licence} (teacher), {recipe.prompts.licence} (prompts)",
    )
