"""A step that learns from cached signals beside a step of cross-entropy: how many times as long it takes.

`make bench-train` runs it after the trainers. Model, texts, batches and student are those of benchmarks/train.py. The
teacher's signals are computed first, outside the clock, and kept in Potstill's cache folder. Every contender is a whole
`fit` in a thread of its own: forward, reading the signals, loss, backward, update, log. Only one is awake: after each
step it hands on, so that a slow second of the machine hits all of them. The first rounds are outside the clock.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pages import computed_in

from potstill.models.load import Loaded, compute_dtype, load
from potstill.models.locate import cache_folder, locate
from potstill.models.student import first_layers
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.train import TrainSettings
from potstill.records import Progress, unwatched
from potstill.store.checkpoints import Checkpoints
from potstill.store.forms import Form, HiddenForm, SampledForm, TopKForm
from potstill.store.metrics import Metrics
from potstill.store.signals import Identity
from potstill.train import loop
from potstill.train.batch import Row
from potstill.train.data import Data
from potstill.train.language import TokenObjective
from potstill.train.teaching import Kept, LiveTeacher, Teach, from_cache
from potstill.train.traces import Traces
from train import BATCH, LAYERS, MODEL, RATE, tokenised

WARM = 2
ARMS: dict[str, Form | None] = {
    "cross-entropy (sft)": None,
    "cached top-64": TopKForm(64),
    "cached draws (32)": SampledForm(32),
    "cached hidden, int8": HiddenForm("int8"),
}


@dataclass(slots=True)
class Baton:
    """Who holds it runs. `wall` and `cpu` are the seconds of each arm's steps."""

    count: int
    wall: list[list[float]] = field(default_factory=list[list[float]])
    cpu: list[list[float]] = field(default_factory=list[list[float]])
    _turns: list[threading.Semaphore] = field(default_factory=list[threading.Semaphore])
    _since: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.wall, self.cpu = ([[] for _ in range(self.count)] for _ in range(2))
        self._turns = [threading.Semaphore(0) for _ in range(self.count)]

    def take(self, arm: int) -> None:
        self._turns[arm].acquire()
        self._since = time.perf_counter(), time.process_time()

    def hand_on(self, arm: int) -> None:
        self.wall[arm].append(time.perf_counter() - self._since[0])
        self.cpu[arm].append(time.process_time() - self._since[1])
        self.release((arm + 1) % self.count)

    def release(self, arm: int) -> None:
        self._turns[arm].release()


def signals(loaded: Loaded, form: Form, rows: Sequence[Row]) -> Teach:
    identity = Identity(
        teacher=loaded.fingerprint,
        revision="",
        tokenizer="",
        template="",
        vocabulary=len(loaded.model.get_output_embeddings().weight),
        dtype=str(compute_dtype()),
    )
    folder = cache_folder() / "bench-signals" / type(form).__name__

    def teacher() -> LiveTeacher:
        return LiveTeacher(loaded.model.requires_grad_(False), [row.teacher_prefix for row in rows])

    return from_cache(Kept(folder=folder, identity=identity, form=form, load=teacher), rows, unwatched)


def train(arm: int, baton: Baton, loaded: Loaded, teach: Teach | None, rows: Sequence[Row], epochs: int) -> None:
    def watch(_: Progress) -> None:
        baton.hand_on(arm)
        baton.take(arm)

    settings = TrainSettings(
        method=Sft(kind="sft"),
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        checkpoint_seconds=1e9,
        validations=1,
    )
    baton.take(arm)
    with tempfile.TemporaryDirectory() as folder:
        method = settings.method if teach is None else LogitKd(kind="logit_kd", alpha=0.0)
        training = loop.Training(
            data=Data(rows),
            objective=TokenObjective(method=method, teach=teach),
            settings=settings,
            seed=0,
            validate=lambda _: {},
            traces=Traces(
                arm="student",
                fingerprint="",
                checkpoints=Checkpoints(Path(folder) / "checkpoints"),
                metrics=Metrics(Path(folder) / "metrics.jsonl"),
                watch=watch,
            ),
        )
        loop.fit(first_layers(loaded.model, LAYERS).requires_grad_(), training)
    baton.release((arm + 1) % baton.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=1)
    chosen = parser.parse_args()
    loaded = load(locate(MODEL))
    rows = [Row(prefix=p, target=t, teacher_prefix=p) for p, t in tokenised(loaded.folder, chosen.texts)]
    teachers = [None if form is None else signals(loaded, form, rows) for form in ARMS.values()]
    baton = Baton(len(ARMS))
    arms = [
        threading.Thread(target=train, args=(arm, baton, loaded, teach, rows, chosen.epochs))
        for arm, teach in enumerate(teachers)
    ]
    for thread in arms:
        thread.start()
    baton.release(0)
    for thread in arms:
        thread.join()
    tokens = sum(row.tokens for row in rows) * BATCH / len(rows)
    print(
        f"{computed_in()}, Python {platform.python_version()} torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; {len(baton.wall[0]) - WARM} rounds, medians; {tokens:.0f} tokens per step"
    )
    print("| step | ms | times cross-entropy | times its CPU time |\n|---|---|---|---|")
    for name, wall, cpu in zip(ARMS, baton.wall, baton.cpu, strict=True):
        times = [_times(some, ours) for some, ours in ((wall, baton.wall[0]), (cpu, baton.cpu[0]))]
        print(f"| {name} | {1e3 * statistics.median(wall[WARM:]):.0f} | {times[0]:.3f} | {times[1]:.3f} |")


def _times(some: Sequence[float], cross_entropy: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(some[WARM:], cross_entropy[WARM:], strict=True))


if __name__ == "__main__":
    main()
