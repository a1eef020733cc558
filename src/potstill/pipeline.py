"""The road from prompts to a report. This is the only file that knows the order.

Every stage is stored as finished under a fingerprint of what it was made from: the same command again goes on where the
last one stopped, and a changed recipe repeats only the stages that it concerns. What needs torch is imported where it
runs: a run that is finished needs none of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.errors import InputError
from potstill.generate.ask import answered
from potstill.generate.collect import usable_answers
from potstill.generate.exact import require_exact_models
from potstill.generate.fingerprints import Fingerprints, TrainedArms, hashed
from potstill.generate.judges import Judging, require_judges
from potstill.generate.require import require_rescue, require_sections, require_teacher
from potstill.generate.rescue import try_of, write_asks
from potstill.generate.stage import Generated, all_answers, generate, open_answers, open_rescued, unanswered_prompts
from potstill.licences import gate
from potstill.models.precision import precision
from potstill.processes import Process
from potstill.recipe import Arm, Recipe, arms_of
from potstill.recipe.task import Choice
from potstill.records import Example, Progress, Prompt, Score, Stage, Watch, unwatched
from potstill.store.examples import export_examples
from potstill.store.requests import Requests
from potstill.store.run import RunFolder, open_run
from potstill.store.stages import Stages
from potstill.text.template import day
from potstill.verify.calibrate import Calibration, calibrate, calibrated, write_calibration
from potstill.verify.rewards import Reward, rewarding
from potstill.verify.stage import Nats, Opinions, Verified, unsolved, verify_answers
from potstill.verify.votes import Answers

if TYPE_CHECKING:
    from potstill.train.handed import Handed


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """What a run of this recipe does, in order."""
    sections: dict[Stage, object] = {
        "generate": True,
        "verify": recipe.judged and recipe.rescue is None,
        "rescue": recipe.rescue,  # it verifies too
        "train": recipe.student,
        "evaluate": recipe.evaluate,
        "report": True,
    }
    return tuple(stage for stage, there in sections.items() if there)


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the folder (default `runs/NAME`) that holds what it produced. Each method does one stage on what is
    there and names the one that is missing. It raises a PotstillError with its exit code and way out; finished work is
    kept whatever happens, and not done again."""

    recipe: Recipe
    path: Path | None = None
    watch: Watch = unwatched

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path or Path("runs") / self.recipe.name)

    def read_scores(self) -> dict[str, Any] | None:
        """The content of scores.json, or None before the evaluation."""
        return self.folder.read_scores()

    def generate(self, *, limit: int | None = None) -> Generated:
        """The teacher answers the first `limit` prompts (default all)."""
        require_sections(self.recipe)
        require_teacher(self.recipe.request)
        require_rescue(self.recipe)
        with self._open(new=True) as (run, stages):
            start, fingerprint = time.perf_counter(), Fingerprints(self.recipe, run).generate
            if limit is None and stages.finished("generate") == fingerprint:
                self._done("generate")
                with Requests(run.ledger) as requests:
                    return Generated.of(
                        self.recipe, requests, run, exported=requests.count_answers(most=self.recipe.generate.n)
                    )
            require_exact_models(self.recipe)
            stages.forget("generate")
            found = generate(self.recipe, run, limit=limit, watch=self.watch)
            if limit is None and not found.settled.get("failed"):  # what failed for now is tried again
                stages.finish("generate", fingerprint, time.perf_counter() - start)
            return found

    def verify(self) -> Verified:
        """Checks the answers that the ledger holds, those that rescue brought among them, and writes the best. Sends
        nothing but what a judge of the recipe has not been asked yet; free to do again."""
        with self._open() as (run, stages), _timed(stages, "verify", Fingerprints(self.recipe, run).verify):
            return self._verify(run)

    def rescue(self) -> Verified:
        """Asks again where no answer passed, try after try, and verifies everything."""
        if self.recipe.rescue is None:
            raise InputError("the recipe has no 'rescue' section", way_out="add one with its tries")
        require_sections(self.recipe)
        require_rescue(self.recipe)
        with self._open() as (run, stages), _timed(stages, "rescue", Fingerprints(self.recipe, run).verify):
            self._ask_again(run)
            return self._verify(run)

    def train(self, arm: str | None = None) -> dict[str, Path]:
        """Trains every arm, or the one named; returns their model folders."""
        require_sections(self.recipe)
        arms = [one for one in arms_of(self.recipe) if arm in (None, one.name)]
        if not arms:
            raise self._no_arm(arm)
        this = Process.this()
        with self._open() if this.first else nullcontext() as opened:
            trained = opened and TrainedArms(self.recipe, *opened)
            todo = [one for one in arms if this.count > 1 or not (trained and trained.has(one))]
            for one in arms:
                if one not in todo:
                    self._done("train", one.name)
            if todo:
                from potstill.train.stage import train_arms  # torch takes seconds

                train_arms(todo, self.folder, trained, self._handed(), self.watch)
            if todo and opened is not None:
                from potstill.report.stage import write_cards

                write_cards(self.folder)
        return {one.name: self.folder.arm_model(one.name) for one in arms}

    def evaluate(self) -> dict[str, Any]:
        """Every arm answers the test prompts once; returns the content of scores.json."""
        if self.recipe.evaluate is None:
            raise InputError("the recipe has no 'evaluate' section", way_out="add one")
        require_sections(self.recipe)
        with self._open() as (run, stages):
            prints = Fingerprints(self.recipe, run)
            trained = {arm.name: TrainedArms(self.recipe, run, stages).require(arm) for arm in arms_of(self.recipe)}
            todo = {
                arm: print for arm, print in prints.evaluate(trained).items() if not self._tested(arm, print, stages)
            }
            whole = hashed(prints.evaluate(trained), self.recipe.evaluate.resamples)
            if not todo and stages.finished("evaluate") == whole and (scores := run.read_scores()) is not None:
                self._done("evaluate")
                return scores
            from potstill.evaluate.stage import compare, evaluate_arm  # torch takes seconds

            for arm, fingerprint in todo.items():
                with _timed(stages, f"evaluate:{arm}", fingerprint):
                    evaluate_arm(self.recipe, run, stages, arm, self.watch)
            with _timed(stages, "evaluate", whole):
                return compare(self.recipe, run, stages, list(prints.evaluate(trained)), self.watch)

    def report(self) -> Path:
        """Writes report.html, and the cards of data and model, from what is there, at any moment of the run."""
        if not self.folder.recipe.is_file():
            raise InputError(f"there is no run in '{self.folder.path}' yet", way_out="potstill generate first")
        from potstill.report.stage import write_report

        return write_report(self.folder, watch=self.watch)

    def bring_up_to_date(self, stage: Stage) -> None:
        """Do a stage, unless it was finished from what there is now."""
        match stage:
            case "generate":
                self.generate()
            case "verify" | "rescue":
                with self._open() as (run, stages):
                    current = stages.finished(stage) == Fingerprints(self.recipe, run).verify
                if current and self.folder.selected.is_file():
                    self._done(stage)
                else:
                    self.verify() if stage == "verify" else self.rescue()
            case "train":
                self.train()
            case "evaluate":
                self.evaluate()
            case "report":
                with self._open() as (run, stages):
                    finished = {name: stages.finished(name) for name in stages.seconds() if name != "report"}
                    fingerprint = hashed(self.recipe.model_dump(mode="json"), finished)
                    current = stages.finished("report") == fingerprint and run.report.is_file()
                    if current:
                        self._done("report")
                    else:
                        with _timed(stages, "report", fingerprint):
                            self.report()

    def export(self, form: Literal["jsonl", "parquet"] = "jsonl") -> dict[Path, int]:
        """The kept answers (and pairs) for other programs; each file with its number of rows."""
        return export_examples(self.folder.kept(verified=self.recipe.judged), form=form)

    def _tested(self, arm: str, fingerprint: str, stages: Stages) -> bool:
        if stages.finished(f"evaluate:{arm}") != fingerprint:
            return False
        self._done("evaluate", arm)
        return True

    def _verify(self, run: RunFolder) -> Verified:
        recipe = self.recipe
        if not recipe.judged:
            raise InputError("the recipe has no 'verify' section", way_out="add one with its checks")
        gate(recipe)
        require_judges(recipe)
        judging = Judging(recipe, run.path, self.watch)
        with open_answers(recipe, run) as requests, open_rescued(recipe, run) as rescued:
            calibration = _calibrate(recipe, run, requests)
            silent = (prompt for prompt in unanswered_prompts(recipe, requests) if prompt.split == "train")
            found = verify_answers(
                recipe,
                _to_learn(recipe, calibration, all_answers(recipe, requests, rescued)),
                run,
                total=requests.count_answers(most=recipe.generate.n, split="train"),
                watch=self.watch,
                handed=Opinions(
                    grade=judging.grade,
                    student_nats=_student_nats(recipe),
                    unanswered=sum(not any(rescued.of(prompt)) for prompt in silent),
                    calibration=calibration,
                ),
            )
        return replace(found, judges=judging.totals)

    def _ask_again(self, run: RunFolder) -> None:
        """The tries of a rescue in turn, each for the prompts that have no passed answer yet."""
        recipe = self.recipe
        assert recipe.rescue is not None
        judging = Judging(recipe, run.path, self.watch)  # a judge is asked as `verify` asks it: once for both
        with open_answers(recipe, run) as requests:
            calibration = _calibrate(recipe, run, requests)
            own = usable_answers(recipe.generate, requests, most=recipe.generate.n)
            lost = unsolved(recipe, _to_learn(recipe, calibration, own), judging.grade)
            count = self._write_asks(run, 1, chain(unanswered_prompts(recipe, requests), lost))
        for number in range(1, len(recipe.rescue.tries) + 1):
            if not count:
                return
            request = try_of(recipe, number, _asks(run, number))
            answered(request, run.path / "rescue", self.watch)
            if number < len(recipe.rescue.tries):
                with Requests(run.path / "rescue" / "ledger.sqlite") as requests:
                    how = request.generate
                    tried = usable_answers(how, requests, most=how.n)
                    answers = ((prompt, replace(sample, rescue=number)) for prompt, sample in tried)
                    silent = requests.unanswered(most=how.n, cut_off=how.truncated == "keep")
                    lost = unsolved(recipe, _to_learn(recipe, calibration, answers), judging.grade)
                    count = self._write_asks(run, number + 1, chain(silent, lost))

    def _write_asks(self, run: RunFolder, number: int, prompts: Iterator[Prompt]) -> int:
        count = write_asks(_asks(run, number), (prompt for prompt in prompts if prompt.split == "train"))
        self.watch(Progress(stage="verify", what=f"prompts for rescue try {number}", done=count, total=count))
        return count

    @contextmanager
    def _open(self, *, new: bool = False) -> Generator[tuple[RunFolder, Stages]]:
        """The run folder, locked, and what is finished in it; what runs inside computes in the recipe's precision, and
        on the run's day. Raises InputError where there is nothing to work on, unless it is `new`."""
        if not (new or self.folder.ledger.is_file()):
            nothing = f"'{self.folder.path}' holds no answers yet"
            raise InputError(nothing, way_out="let the teacher write: potstill generate")
        opened = open_run(self.folder.path, self.recipe)
        with precision(self.recipe.train.precision), opened as run, day(run.day), Stages(run.ledger) as stages:
            yield run, stages

    def _handed(self) -> Handed:
        """What training asks of rooms that it may not import."""
        from potstill.evaluate.validation import Validation, validator
        from potstill.train.handed import Handed

        def validate(arm: Arm, held: Sequence[Example]) -> Callable[[Any], dict[str, Score]]:
            mine = Validation.of_examples(held) if held else Validation.of_run(arm.recipe, self.folder)
            return validator(arm.recipe, mine)

        @contextmanager
        def rewards(arm: Arm) -> Generator[Reward]:
            with Requests(self.folder.ledger) as requests, rewarding(arm.recipe, requests.prompts()) as reward:
                yield reward

        return Handed(validator=validate, rewarding=rewards)

    def _done(self, stage: Stage, what: str = "") -> None:
        self.watch(Progress(stage=stage, what=what or stage, done=1, total=1, note="already done"))

    def _no_arm(self, name: str | None) -> InputError:
        if known := ", ".join(one.name for one in arms_of(self.recipe)):
            return InputError(f"no arm is called '{name}'", way_out=f"choose one of {known}")
        return InputError("the recipe has no 'student' section", way_out="add one: start, layers, licence")


def distill(recipe: Recipe, *, folder: Path | None = None, through: Stage = "report", watch: Watch = unwatched) -> Run:
    """Bring the run folder (default `runs/NAME`) up to date with `recipe`, up to and including stage `through`."""
    run, stages = Run(recipe, folder, watch), stages_of(recipe)
    if through == "verify" and "rescue" in stages:
        through = "rescue"  # it verifies too
    if through not in stages:
        raise InputError(f"the recipe has no '{through}' section", way_out=f"choose one of {', '.join(stages)}")
    for stage in stages[: stages.index(through) + 1]:
        if Process.this().first or stage == "train":
            run.bring_up_to_date(stage)
    return run


@contextmanager
def _timed(stages: Stages, name: str, fingerprint: str) -> Generator[None]:
    """A stage that is finished when the block ends, and not if it does not."""
    stages.forget(name)
    start = time.perf_counter()
    yield
    stages.finish(name, fingerprint, time.perf_counter() - start)


def _calibrate(recipe: Recipe, run: RunFolder, requests: Requests) -> Calibration | None:
    """Of choices, fitted to the teacher's own answers and kept in calibration.json."""
    if not isinstance(recipe.task, Choice):
        return None
    calibration = calibrate(recipe, usable_answers(recipe.generate, requests, most=recipe.generate.n))
    write_calibration(run, calibration)
    return calibration


def _to_learn(recipe: Recipe, calibration: Calibration | None, answers: Answers) -> Answers:
    """The answers to training prompts, of choices calibrated; and those texts to validation prompts that training holds
    back. Validation prompts of choices have fitted the calibration."""
    if calibration is None:
        return (row for row in answers if row[0].split != "test")
    return calibrated(recipe, calibration, (row for row in answers if row[0].split == "train"))


def _asks(run: RunFolder, number: int) -> Path:
    return run.path / f"rescue-{number}.jsonl"


def _student_nats(recipe: Recipe) -> Nats | None:
    """What `select.prefer: learnable` asks the student before its first step."""
    if recipe.select.prefer != "learnable":
        return None
    from potstill.train.learnable import student_nats  # torch takes seconds

    return student_nats(recipe)
