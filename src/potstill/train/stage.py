"""The stage `train`: every arm learns the kept answers, one after the other, by the same loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from potstill.errors import InputError
from potstill.generate.fingerprints import TrainedArms
from potstill.models.precision import precision
from potstill.recipe import Arm
from potstill.recipe.student import Encoder, Ranked, Student
from potstill.recipe.task import Choice
from potstill.records import Example, Progress, Watch
from potstill.store.examples import read_examples
from potstill.store.files import write_atomic
from potstill.store.run import STUDENT, RunFolder, read_json
from potstill.text.template import day
from potstill.train.choices import train_on_choices
from potstill.train.encoder import train_encoder
from potstill.train.handed import Handed, Outcome
from potstill.train.launch import joined
from potstill.train.texts import train_on_texts
from potstill.train.traces import ArmFiles
from potstill.train.world import World


def train_arms(arms: Sequence[Arm], run: RunFolder, trained: TrainedArms | None, handed: Handed, watch: Watch) -> None:
    """Train those that are not finished, from wherever they stand. Only the first of several processes knows what was
    `trained`."""
    with joined([arm.recipe.train for arm in arms]) as world:
        for arm in arms:
            fingerprint = world.told(lambda arm=arm: _to_do(arm, trained))
            if fingerprint is None:
                watch(Progress(stage="train", what=arm.name, done=1, total=1, note="already done"))
                continue
            if trained is not None:
                trained.forget(arm)
            files = ArmFiles(arm=arm.name, fingerprint=fingerprint, run=run, watch=watch)
            with precision(arm.recipe.train.precision), day(run.day):
                outcome = _train(arm, run, files, handed, world)
            if trained is not None:
                _write_outcome(run, arm, fingerprint, outcome)
                trained.finish(arm, fingerprint, outcome.fitted.seconds)


def _to_do(arm: Arm, trained: TrainedArms | None) -> str | None:
    """The fingerprint of what an arm is to be trained from, or None where it was."""
    return None if trained is None or trained.has(arm) else trained.fingerprint(arm)


def _train(arm: Arm, run: RunFolder, files: ArmFiles, handed: Handed, world: World) -> Outcome:
    examples = _examples(arm, run)
    match arm.student:
        case Encoder():
            return train_encoder(arm, examples, files, handed)
        case Student() if isinstance(arm.recipe.task, Choice):
            return train_on_choices(arm, examples, files, handed, _layers(arm, run), world)
        case Student():
            return train_on_texts(arm, examples, files, handed, _layers(arm, run), world)


def _examples(arm: Arm, run: RunFolder) -> list[Example]:
    kept = run.kept(verified=arm.recipe.judged)
    if not kept.is_file():
        verb = "verify" if arm.recipe.judged else "generate"
        raise InputError(f"'{run.path}' holds no kept answers yet", way_out=f"potstill {verb} first")
    return list(read_examples(kept))


def _layers(arm: Arm, run: RunFolder) -> Sequence[int] | None:
    """Of the control from_scratch those that the student took, where it ranked them: the shape is the same then."""
    assert isinstance(arm.student, Student)
    if arm.name != "from_scratch" or isinstance(arm.student.layers, Ranked):
        return None
    student = read_json(run.arm(STUDENT) / "trained.json")
    return student["layers"] if student else None


def _write_outcome(run: RunFolder, arm: Arm, fingerprint: str, outcome: Outcome) -> None:
    said = asdict(outcome)
    facts = {"arm": arm.name, "fingerprint": fingerprint, **said.pop("fitted"), **said}
    write_atomic(run.arm(arm.name) / "trained.json", json.dumps(facts, indent=1))
