"""What the run folder holds, as far as the run got: every part may be missing and none is made up.

Reads beside whoever writes: no lock, nothing changed.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from potstill.errors import InputError, MissingEnvironment
from potstill.models.identity import weights
from potstill.models.locate import Facts, facts, locate
from potstill.models.precision import resolved
from potstill.recipe import Recipe, arms_of
from potstill.recipe import file as recipe_file
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Batches, Gguf, Local, Server
from potstill.records import Split
from potstill.report.cases import Case, candidates, side_by_side
from potstill.report.choices import Labels, Tested, read_labels, read_tested
from potstill.report.tally import Outcomes, Tally, right_ids, tally, tally_outcomes
from potstill.report.wording import ArmName, arm_names, in_order
from potstill.store.metrics import Metrics
from potstill.store.requests import Requests, glance
from potstill.store.run import STUDENT, RunFolder, read_json
from potstill.store.stages import Stages

_PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "numpy", "scikit-learn")
_ASKED: tuple[Split, ...] = ("train", "validation")
_LEDGERS = {
    "prompts written by the teacher": "expansion",
    "the teacher's answers": ".",
    "hard prompts asked again": "rescue",
    "the teacher's answers to the test prompts": "test/teacher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """From prompts to usable answers, as the ledger has it. `lost`: given up, or cut off and not kept, by reason.
    `to_judge` and `to_validate`: usable answers to training and to validation prompts."""

    left_out: Mapping[str, int]
    splits: Mapping[Split, int]
    prompts: int
    wanted: int
    answered: int
    lost: Mapping[str, int]
    to_judge: int
    to_validate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """None, or empty, is what the run does not have (yet). `recipes`: of every arm that is trained; `names` of all that
    may answer; `trained`: what training left of each; `start`: what the student
    is made of; `teacher_hash`: SHA-256 of its weights, where it answers in this process."""

    recipe: Recipe
    recipe_yaml: str
    recipes: Mapping[str, Recipe]
    names: Mapping[str, ArmName]
    road: Road | None
    spent: Mapping[str, Mapping[str, int]]
    tally: Tally | None
    candidates: Sequence[Case]
    labels: Labels | None
    trained: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, Facts]
    start: Facts | None
    metrics: Sequence[Mapping[str, Any]]
    teacher_hash: str | None
    own_text: Mapping[str, Any] | None
    scores: Mapping[str, Any] | None
    outcomes: Outcomes | None
    tested: Tested | None
    side_by_side: Sequence[Case]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def arms(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Arm -> metric -> score, in the order of the page."""
        found: Mapping[str, Any] = (self.scores or {}).get("arms", {})
        return {arm: found[arm] for arm in in_order(self.names, found)}

    def name(self, arm: str) -> ArmName:
        return self.names.get(arm, ArmName(arm, "", arm, "#8a8f98"))

    def value(self, arm: str, metric: str) -> float | None:
        """A score, or None where it was not measured."""
        score = self.arms.get(arm, {}).get(metric)
        return None if score is None else float(score["value"])

    def parameters(self, arm: str) -> float | None:
        """As they were measured, else as the headers of its model folder say."""
        size = self.sizes.get(arm)
        return self.value(arm, "parameters") or (float(size.parameters) if size else None)

    def ratio(self, over: str, under: str, metric: str) -> float | None:
        """`over`'s value as a multiple of `under`'s, or None where one is missing or 0."""
        top, bottom = self.value(over, metric), self.value(under, metric)
        return top / bottom if top is not None and bottom else None

    @property
    def spent_in_all(self) -> Counter[str]:
        sums = Counter[str]()
        for part in self.spent.values():
            sums.update(part)
        return sums

    @property
    def unpriced(self) -> bool:
        """Whether somebody was asked whose money no price file counts."""
        recipe = self.recipe
        again = [one.teacher for one in recipe.rescue.tries if one.teacher] if recipe.rescue else []
        judges = recipe.verify.judges if recipe.verify else ()
        asked = [(recipe.generate.prices, teacher) for teacher in (recipe.teacher, *again)]
        asked += [(judge.prices, judge.teacher) for judge in judges]
        return any(prices is None and isinstance(one.engine, Server | Batches) for prices, one in asked)

    @property
    def seconds_per_1000_answers(self) -> Mapping[str, float]:
        return ((self.scores or {}).get("cost") or {}).get("per_1000_answers") or {}

    @property
    def stale(self) -> list[str]:
        """Arms that were trained again after they were evaluated."""
        then: Mapping[str, str] = (self.scores or {}).get("trained", {})
        return [arm for arm, now in self.trained.items() if arm in then and then[arm] != now["fingerprint"]]


def gather(run: RunFolder) -> RunReport:
    """Raises InputError where there is no run."""
    recipe = run.read_recipe()
    names, teacher, choice = arm_names(recipe), recipe.teacher, isinstance(recipe.task, Choice)
    lenient = recipe.verify is not None and recipe.verify.undecided == "keep"
    judged = tally(run.verdicts, lenient=lenient, own=recipe.generate.n) if run.verdicts.is_file() else None
    scores = run.read_scores()
    tested = read_tested(run, recipe, (scores or {}).get("arms", {})) if choice else None
    by_checks = recipe.evaluate is not None and recipe.evaluate.checks
    outcomes = _outcomes(run, scores) if not tested else None if by_checks else tested.outcomes()
    recipes = {arm.name: arm.recipe for arm in arms_of(recipe)}
    trained = {arm: found for arm in in_order(names, recipes) if (found := read_json(run.arm(arm) / "trained.json"))}
    models = {arm: run.arm_model(arm) for arm in recipes}
    return RunReport(
        recipe=recipe,
        recipe_yaml=recipe_file.as_yaml(recipe),
        recipes=recipes,
        names=names,
        road=_road(run, recipe),
        spent=_spent(run),
        tally=judged,
        candidates=candidates(run, judged, lenient=lenient) if judged and not choice else (),
        labels=read_labels(run, recipe) if judged and choice else None,
        trained=trained,
        sizes={arm: size for arm, model in models.items() if model.is_dir() and (size := _facts(str(model)))},
        start=_facts(recipe.student.start) if recipe.student and recipe.student.start else None,
        metrics=Metrics(run.metrics).rows(),
        teacher_hash=weights(teacher.model, teacher.revision) if isinstance(teacher.engine, Gguf | Local) else None,
        own_text=read_json(run.arm(STUDENT) / "rollouts.json"),
        scores=scores,
        outcomes=outcomes,
        tested=tested,
        side_by_side=side_by_side(run, outcomes.shown, _answering(run, scores, names))
        if outcomes and not tested
        else (),
        seconds=_seconds(run),
        versions=_versions(recipe),
    )


def _road(run: RunFolder, recipe: Recipe) -> Road | None:
    """Of the test prompts the evaluation tells."""
    most, keeps = recipe.generate.n, recipe.generate.truncated == "keep"
    if not run.ledger.is_file():
        return None
    with Requests(run.ledger) as requests:
        splits = requests.count_splits()
        answered = {split: requests.count_answers(most=most, split=split) for split in _ASKED}
        cut_off = {split: 0 if keeps else requests.count_cut_off(most=most, split=split) for split in _ASKED}
        lost = {**requests.lost_answers(most=most), "cut off": sum(cut_off.values())}
        left_out = json.loads(requests.mark("left out") or "{}")
    prompts = sum(splits.get(split, 0) for split in _ASKED)
    return Road(
        left_out=left_out,
        splits=splits,
        prompts=prompts,
        wanted=prompts * most,
        answered=sum(answered.values()),
        lost={why: n for why, n in lost.items() if n},
        to_judge=answered["train"] - cut_off["train"],
        to_validate=answered["validation"] - cut_off["validation"],
    )


def _spent(run: RunFolder) -> dict[str, Mapping[str, int]]:
    """The sums of every ledger, those of judges that the recipe no longer names among them."""
    ledgers = {what: run.path / part for what, part in _LEDGERS.items()}
    ledgers |= {f"the judge '{place.name}'": place for place in sorted((run.path / "judge").glob("*/"))}
    return {what: sums for what, place in ledgers.items() if (sums := glance(place)) is not None}


def _outcomes(run: RunFolder, scores: Mapping[str, Any] | None) -> Outcomes | None:
    """None where the test answers of teacher and student are not all judged."""
    tests = {arm: RunFolder(run.test(arm)) for arm in ("teacher", STUDENT)}
    if scores is None or not all(test.verdicts.is_file() for test in tests.values()):
        return None
    with Requests(tests["teacher"].ledger) as requests:
        ids = requests.prompt_ids()
    right = {arm: right_ids(test.verdicts) for arm, test in tests.items()}
    return tally_outcomes(ids, student=right[STUDENT], teacher=right["teacher"])


def _answering(run: RunFolder, scores: Mapping[str, Any] | None, names: Mapping[str, ArmName]) -> dict[str, ArmName]:
    """The arms whose test answers lie there with their verdicts."""
    arms = in_order(names, (scores or {})["arms"])
    return {arm: names[arm] for arm in arms if arm in names and RunFolder(run.test(arm)).verdicts.is_file()}


def _facts(model: str) -> Facts | None:
    """None for a model that is not on this machine, or no longer, or whose form is not known."""
    try:
        return facts(locate(model))
    except (InputError, MissingEnvironment):
        return None


def _seconds(run: RunFolder) -> dict[str, float]:
    if not run.ledger.is_file():
        return {}
    with Stages(run.ledger) as stages:
        return stages.seconds()


def _versions(recipe: Recipe) -> dict[str, str]:
    """Of the software here, and what it computes in."""
    found = {package: _installed(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found, "precision": resolved(recipe.train.precision)}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
