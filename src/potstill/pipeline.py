"""The road from prompts to a report. This is the only file that knows the order.

Every stage stores what it finished in the run folder under a fingerprint of the parts of the recipe that it depends on:
the same command again goes on where the last one stopped, and a changed recipe repeats only the stages it concerns.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from potstill.evaluate.arms import (
    compare,
    encoder_validator,
    evaluate_encoder,
    evaluate_floor,
    evaluate_model,
    evaluate_teacher,
    student_codec,
    validator,
)
from potstill.generate.teacher import generate
from potstill.licences import check_licence
from potstill.models.load import fingerprint as model_fingerprint
from potstill.models.load import folder_of
from potstill.models.locate import facts, locate
from potstill.prompts import load_prompts
from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Message, Progress, Stage, Watch, unwatched
from potstill.report.write import write_report
from potstill.store.ledger import Ledger
from potstill.store.run import Run, open_run
from potstill.store.sinks import require_sinks
from potstill.train.arms import train_arm, trained_arms
from potstill.train.encoder import ARM as ENCODER
from potstill.train.encoder import train_encoder
from potstill.verify.teacher import verify

STAGES: tuple[Stage, ...] = get_args(Stage)


def distill(
    recipe: ChoiceRecipe,
    *,
    folder: Path | None = None,
    through: Stage = "report",
    watch: Watch = unwatched,
) -> Run:
    """Bring the run folder (default `runs/NAME`) up to date with `recipe`, up to and including stage `through`.

    Finished work is kept whatever happens. Raises a PotstillError with its exit code and way out.
    """
    check_licence(recipe.teacher.licence, key="teacher.licence")
    check_licence(recipe.prompts.licence, key="prompts.licence")
    require_sinks(recipe.train)
    if recipe.encoder and recipe.encoder.start and recipe.encoder.licence:
        check_licence(recipe.encoder.licence, key="encoder.licence")
        locate(recipe.encoder.start)
    facts(locate(recipe.teacher.model))  # a damaged file is refused before anything is written
    with open_run(folder or Path("runs") / recipe.name, recipe) as (run, ledger):
        watch(Progress(stage="prompts", what="opening the teacher", done=0, total=1))
        road = _Road(run, ledger, watch, _fingerprints(recipe), _encoder_fingerprint(recipe))
        watch(Progress(stage="prompts", what="opening the teacher", done=1, total=1))
        for stage in STAGES[: STAGES.index(through) + 1]:
            road.walk(stage)
    return run


@dataclass(frozen=True, slots=True)
class _Road:
    run: Run
    ledger: Ledger
    watch: Watch
    prints: dict[Stage, str]
    encoder: str

    def walk(self, stage: Stage) -> None:
        run, ledger, watch = self.run, self.ledger, self.watch
        match stage:
            case "prompts":
                self._once(stage, stage, self._prompts)
            case "generate":
                self._once(stage, stage, lambda: generate(run.recipe, ledger, watch))
            case "verify":
                self._once(stage, stage, lambda: verify(run, ledger, watch))
            case "train":
                for arm in [*trained_arms(run.recipe), *self._encoders()]:
                    self._once(stage, f"train:{arm}", lambda arm=arm: self._train(arm))
            case "evaluate":
                self._evaluate()
            case "report":
                write_report(run, ledger, watch)

    def _once(self, stage: Stage, name: str, work: Callable[[], None]) -> None:
        """Do `work` unless it was finished under the same fingerprint."""
        if self.ledger.finished(name) == self._print(stage, name):
            self.watch(Progress(stage=stage, what=name, done=1, total=1, note="already done"))
            return
        self.ledger.forget(name)
        start = time.perf_counter()
        work()
        self.ledger.finish(name, self._print(stage, name), time.perf_counter() - start)

    def _print(self, stage: Stage, name: str) -> str:
        return _hash(self.prints[stage], name, *([self.encoder] if name.endswith(f":{ENCODER}") else []))

    def _prompts(self) -> None:
        codec = student_codec(self.run.recipe)

        def refuse(messages: Sequence[Message]) -> str | None:
            return f"spells the control token {t}" if (t := codec.control_token(messages)) else None

        found = load_prompts(self.run.recipe, refuse=refuse)
        self.ledger.put_prompts(found.prompts, found.left_out)
        count = len(found.prompts)
        self.watch(Progress(stage="prompts", what="prompts", done=count, total=count))

    def _encoders(self) -> list[str]:
        return [ENCODER] if self.run.recipe.encoder else []

    def _train(self, arm: str) -> None:
        if arm == ENCODER:
            validate = encoder_validator(self.run, self.ledger)
            train_encoder(self.run, self.ledger, validate=validate, watch=self.watch)
            return
        train_arm(
            self.run,
            self.ledger,
            arm,
            fingerprint=self._print("train", f"train:{arm}"),
            validate=validator(self.run, self.ledger),
            watch=self.watch,
        )

    def _evaluate(self) -> None:
        run, ledger, watch = self.run, self.ledger, self.watch
        controls = run.recipe.controls
        self._once("evaluate", "evaluate:teacher", lambda: evaluate_teacher(run, ledger, watch))
        models = [*trained_arms(run.recipe), *(["base"] if "base" in controls else [])]
        for arm in models:
            self._once(
                "evaluate",
                f"evaluate:{arm}",
                lambda arm=arm: evaluate_model(run, ledger, arm, watch),
            )
        if "floor" in controls:
            self._once("evaluate", "evaluate:floor", lambda: evaluate_floor(run, ledger, watch))
        for arm in self._encoders():
            self._once("evaluate", f"evaluate:{arm}", lambda: evaluate_encoder(run, ledger, watch))
        floor = ["floor"] if "floor" in controls else []
        compare(run, ledger, ["teacher", "teacher_raw", *models, *self._encoders(), *floor], watch)


def _fingerprints(recipe: ChoiceRecipe) -> dict[Stage, str]:
    """Per stage, a hash of everything in the recipe that its result depends on."""
    values = recipe.model_dump(mode="json")
    del values["train"]["report_to"]  # curves that are drawn elsewhere too make no other student
    teacher = locate(recipe.teacher.model)
    weights = model_fingerprint(folder_of(teacher, revision=recipe.teacher.revision))
    prompts = _hash(values["seed"], values["prompts"], values["answers"]["choices"])
    generated = _hash(prompts, values["teacher"], weights)
    verified = _hash(generated, values["answers"], values["verify"])
    trained = _hash(verified, values["student"], values["train"])
    evaluated = _hash(trained, values["evaluate"])
    return {
        "prompts": prompts,
        "generate": generated,
        "verify": verified,
        "train": trained,
        "evaluate": evaluated,
    }


def _encoder_fingerprint(recipe: ChoiceRecipe) -> str:
    """What the encoder depends on beyond the other arms: its section, and the weights it starts from."""
    encoder = recipe.encoder
    if encoder is None:
        return ""
    start = encoder.start and model_fingerprint(folder_of(locate(encoder.start), revision=encoder.revision))
    return _hash(encoder.model_dump(mode="json"), start)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
