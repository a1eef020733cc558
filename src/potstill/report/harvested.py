"""What the run folder of a data recipe holds, as far as the run got: every part may be missing and none is made up.

Reads beside whoever writes: no lock, nothing changed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import InputError, LicenceRefused, MissingEnvironment
from potstill.licences import check_licence
from potstill.models.locate import Facts, facts, locate
from potstill.recipe import file as recipe_file
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.report.cases import Case, candidates, papers
from potstill.report.data import PACKAGES, installed
from potstill.report.tally import ExamTally, Tally, tally, tally_exam
from potstill.report.wording import arms_in_order
from potstill.store.metrics import Metrics
from potstill.store.requests import Requests, glance

_LEDGERS = {
    "prompts written by the teacher": "expansion",
    "the teacher's answers": ".",
    "hard prompts asked again": "rescue",
    "the teacher's exam": "exam/teacher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """From prompts to usable answers, as the ledger has it. `lost`: given up, or cut off and not kept, by reason."""

    left_out: Mapping[str, int]
    prompts: int
    wanted: int
    answered: int
    lost: Mapping[str, int]
    usable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRun:
    """None, or empty, is what the run does not have (yet)."""

    recipe: Recipe
    recipe_yaml: str
    road: Road | None
    spent: Mapping[str, Mapping[str, int]]
    tally: Tally | None
    candidates: Sequence[Case]
    student: Mapping[str, Any] | None
    size: Facts | None
    start: Facts | None
    metrics: Sequence[Mapping[str, Any]]
    own_text: Mapping[str, Any] | None
    scores: Mapping[str, Any] | None
    exam: ExamTally | None
    papers: Sequence[Case]
    versions: Mapping[str, str]
    duties: Sequence[str]

    @property
    def stale(self) -> bool:
        """Whether the exam was sat by an earlier student than the one in the folder."""
        marked = (self.scores or {}).get("student_fingerprint")
        return bool(marked and self.student and self.student["fingerprint"] != marked)


def gather_data_run(folder: Path) -> DataRun:
    """Raises InputError where there is no run folder of a data recipe."""
    if not (folder / "recipe.yaml").is_file():
        raise InputError(f"there is no run in '{folder}' yet", way_out="potstill run first")
    recipe = load_recipe(folder / "recipe.yaml")
    verdicts = folder / "examples" / "verdicts.parquet"
    lenient = recipe.verify is not None and recipe.verify.undecided == "keep"
    judged = tally(verdicts, lenient=lenient) if verdicts.is_file() else None
    scores = _json(folder / "scores.json")
    exam = _exam(folder, scores)
    return DataRun(
        recipe=recipe,
        recipe_yaml=recipe_file.as_yaml(recipe),
        road=_road(folder, recipe),
        spent=_spent(folder),
        tally=judged,
        candidates=candidates(folder, judged, lenient=lenient) if judged else (),
        student=_json(folder / "student.json"),
        size=_facts(str(folder / "model")) if (folder / "model").is_dir() else None,
        start=_facts(recipe.student.start) if recipe.student else None,
        metrics=Metrics(folder / "metrics.jsonl").rows("student"),
        own_text=_json(folder / "rollouts.json"),
        scores=scores,
        exam=exam,
        papers=papers(folder, exam.shown, arms_in_order((scores or {})["arms"])) if exam else (),
        versions={"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}},
        duties=_duties(recipe),
    )


def _spent(folder: Path) -> dict[str, Mapping[str, int]]:
    """The sums of every ledger, those of judges that the recipe no longer names among them."""
    ledgers = {what: folder / part for what, part in _LEDGERS.items()}
    ledgers |= {f"the judge '{place.name}'": place for place in sorted((folder / "judge").glob("*/"))}
    return {what: sums for what, place in ledgers.items() if (sums := glance(place)) is not None}


def _road(folder: Path, recipe: Recipe) -> Road | None:
    ledger, most = folder / "ledger.sqlite", recipe.generate.n
    if not ledger.is_file():
        return None
    with Requests(ledger) as requests:
        answered, lost = requests.count_answers(most=most), requests.lost_answers(most=most)
        cut_off = 0 if recipe.generate.truncated == "keep" else requests.count_cut_off(most=most)
        prompts = requests.count_asks()
        left_out = json.loads(requests.mark("left out") or "{}")
    return Road(
        left_out=left_out,
        prompts=prompts,
        wanted=prompts * most,
        answered=answered,
        lost={**lost, **({"cut off": cut_off} if cut_off else {})},
        usable=answered - cut_off,
    )


def _exam(folder: Path, scores: Mapping[str, Any] | None) -> ExamTally | None:
    """None for an exam that was marked before verdicts were left, or is not finished."""
    if scores is None:
        return None
    exam = folder / "exam"
    verdicts = {arm: exam / arm / "examples" / "verdicts.parquet" for arm in scores["arms"]}
    if not all(path.is_file() for path in verdicts.values()):
        return None
    with Requests(exam / "teacher" / "ledger.sqlite") as requests:
        ids = iter(requests.prompt_ids())
    return tally_exam(ids, teacher=verdicts["teacher"], student=verdicts["student"])


def _facts(model: str) -> Facts | None:
    """None for a model that is not on this machine, or no longer."""
    try:
        return facts(locate(model))
    except (InputError, MissingEnvironment):
        return None


def _duties(recipe: Recipe) -> list[str]:
    duties: list[str] = []
    for key, licence in recipe.licensed.items():
        try:
            policy = check_licence(licence, key=key)
        except LicenceRefused as refused:  # what the run was made under before the policy knew better
            duties.append(str(refused))
            continue
        if policy.duties:
            duties.append(f"{key.removesuffix('.licence')} ({licence}): {policy.duties}")
    return duties


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
