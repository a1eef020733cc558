"""Where the training of an arm leaves what it did, and how it goes on after a kill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from potstill.recipe.train import Loop
from potstill.records import Progress, Watch, unwatched
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics, sinks_of
from potstill.store.run import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Of one arm. A checkpoint with another fingerprint is not gone on from."""

    arm: str
    fingerprint: str
    checkpoints: Checkpoints
    metrics: Metrics
    watch: Watch = unwatched


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFiles:
    """Where an arm of a run is trained and saved."""

    arm: str
    fingerprint: str
    run: RunFolder
    watch: Watch = unwatched

    @property
    def folder(self) -> Path:
        return self.run.arm(self.arm)

    @property
    def model(self) -> Path:
        return self.run.arm_model(self.arm)

    @property
    def rollouts(self) -> Path:
        """What a student that learned on policy wrote, as the report shows it."""
        return self.folder / "rollouts.json"

    @property
    def writer(self) -> Path:
        """Where a server that writes the student's answers finds its weights."""
        return self.folder / "writer"

    def tell_left_out(self, left_out: Counter[str], *, learnt: int) -> None:
        """How many examples the arm cannot learn, and why."""
        if left_out:
            note = ", ".join(f"{n:,} left out: {reason}" for reason, n in left_out.items())
            total = learnt + left_out.total()
            self.watch(Progress(stage="train", what=f"examples of {self.arm}", done=learnt, total=total, note=note))

    def traces(self, settings: Loop, *, writes: bool = True) -> Traces:
        """`writes`: not in a process that leaves metrics to another."""
        sinks = sinks_of(settings, self.run.path) if writes else ()
        return Traces(
            arm=self.arm,
            fingerprint=self.fingerprint,
            checkpoints=Checkpoints(self.folder / "checkpoints", better=settings.better),
            metrics=Metrics(self.run.metrics, sinks, writes=writes),
            watch=self.watch,
        )
