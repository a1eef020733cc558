"""Learning curves. `metrics.jsonl`: one JSON object per line, one line per training step or validation; and where the
same rows go beside it: TensorBoard's event files, Weights & Biases.

Rows of steps that are taken again after a stop do not stand there twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from potstill.errors import MissingEnvironment
from potstill.recipe.train import Loop
from potstill.store.files import write_atomic

Row = dict[str, Any]


class Metrics:
    """The file, and the sinks that get the same rows from the first `rewind` until the block ends. `writes`: not in a
    process that leaves it to another."""

    def __init__(self, path: Path, sinks: Sequence[Sink] = (), *, writes: bool = True) -> None:
        self._path, self._sinks, self._writes = path, sinks, writes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()

    @property
    def folder(self) -> Path:
        """The run's."""
        return self._path.parent

    def append(self, row: Row) -> None:
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink.put(row)

    def rows(self, arm: str | None = None) -> list[Row]:
        """All rows, or one arm's. A line torn by a crash is the last one of a step that will be taken again."""
        if not self._path.is_file():
            return []
        rows: list[Row] = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return [row for row in rows if arm is None or row["arm"] == arm]

    def rewind(self, arm: str, step: int) -> None:
        """Drop the arm's rows after `step`: training goes on from there."""
        if not self._writes:
            return
        rows = self.rows()
        kept = [row for row in rows if row["arm"] != arm or row["step"] <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        seen = max((row["step"] for row in rows if row["arm"] == arm), default=0)
        for sink in self._sinks:
            sink.begin(arm, [row for row in kept if row["arm"] == arm], seen=seen)


class Sink(Protocol):
    """Of one run folder. `begin` comes before the first `put` of an arm: its rows so far that stay (`kept`; training
    goes on after them), and the last step that was ever put (`seen`), which may lie behind them."""

    def begin(self, arm: str, kept: Sequence[Row], *, seen: int) -> None: ...
    def put(self, row: Row) -> None: ...
    def close(self) -> None: ...


def sinks_of(settings: Loop, folder: Path) -> tuple[Sink, ...]:
    """Those that `report_to` asks for; nothing is imported or sent before the first `begin`."""
    made: Mapping[str, Sink] = {"tensorboard": TensorBoard(folder), "wandb": Wandb(folder, settings)}
    return tuple(made[name] for name in dict.fromkeys(settings.report_to))


def require_sinks(settings: Loop) -> None:
    """Raises MissingEnvironment where `report_to` names a package that is not installed."""
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise MissingEnvironment(
                f"'train.report_to' {name} needs the package of that name", way_out=f"pip install 'potstill[{name}]'"
            )


def points(row: Row) -> dict[str, float]:
    """The numbers of a row by the names of their curves: `train/loss`, `validation/nats_per_token`."""
    return {
        name.replace("_", "/", 1) if name.startswith("validation_") else f"train/{name}": float(value)
        for name, value in row.items()
        if name not in ("arm", "step") and isinstance(value, int | float)
    }


class TensorBoard:
    """`tensorboard/ARM/` of the run folder: `tensorboard --logdir RUNS` shows all runs side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def begin(self, arm: str, kept: Sequence[Row], *, seen: int) -> None:
        self.close()
        from torch.utils.tensorboard import SummaryWriter  # the extra `tensorboard`

        place = self._folder / arm
        new = not any(place.glob("events.*"))
        step = kept[-1]["step"] if kept else 0
        # What lies at or behind purge_step is hidden: it was of steps that are taken again.
        self._writer = SummaryWriter(str(place), purge_step=None if new else step + 1)
        for row in kept if new else ():
            self.put(row)

    def put(self, row: Row) -> None:
        for name, value in points(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()  # a kill may not lose what metrics.jsonl has

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Wandb:
    """One W&B run an arm. Its id is in `wandb/ARM.json` of the run folder, with the last step that was sent: training
    from the start is a run of its own, going on is the same one. `WANDB_MODE=offline` sends nothing."""

    def __init__(self, folder: Path, settings: Loop) -> None:
        self._folder, self._settings = folder, settings
        self._run: Any = None
        self._sent = 0

    def begin(self, arm: str, kept: Sequence[Row], *, seen: int) -> None:
        self.close()
        import wandb  # pyright: ignore[reportMissingImports]  # the extra of that name

        state = self._folder / "wandb" / f"{arm}.json"
        known = json.loads(state.read_text(encoding="utf-8")) if kept and state.is_file() else None
        run_id = known["id"] if known else secrets.token_hex(8)
        self._sent = max(known["sent"], seen) if known else 0
        write_atomic(state, json.dumps({"id": run_id, "sent": self._sent}))
        if os.environ.get("WANDB_MODE") in (None, "online") and wandb.api.api_key is None:  # it would ask, and wait
            raise MissingEnvironment(
                "'train.report_to' wandb: nobody is logged in to Weights & Biases on this machine",
                way_out="wandb login, or set WANDB_MODE=offline and send it later by wandb sync",
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "potstill"),
            group=self._folder.name,
            name=f"{self._folder.name}/{arm}",
            id=run_id,
            resume="allow",
            dir=self._folder,
            config={"arm": arm, **self._settings.model_dump(mode="json")},
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        for row in kept:
            self.put(row)

    def put(self, row: Row) -> None:
        if row["step"] > self._sent:
            self._run.log(points(row), step=row["step"])
            self._sent = row["step"]

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
