"""TensorBoard and W&B get the rows of metrics.jsonl, once each, whatever was killed in between."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.errors import MissingEnvironment
from potstill.recipe.methods import Sft
from potstill.recipe.train import TrainSettings
from potstill.store.metrics import Metrics, require_sinks, sinks_of


def settings(*names: str) -> TrainSettings:
    return TrainSettings.model_validate({"method": Sft(kind="sft"), "report_to": names})


def row(step: int, run: int) -> dict[str, Any]:
    validated = {"validation_nats_per_token": step / 2} if step % 2 == 0 else {}
    return {"arm": "student", "step": step, "loss": step + run / 10, **validated}


def training(folder: Path, how: TrainSettings, begin: int, end: int, *, run: int, killed: bool = False) -> None:
    """Steps `begin` + 1 to `end`; a killed process closes nothing."""
    metrics = Metrics(folder / "metrics.jsonl", sinks_of(how, folder))
    metrics.rewind("student", begin)
    for step in range(begin + 1, end + 1):
        metrics.append(row(step, run))
    if not killed:
        with metrics:
            pass


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """As TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "student"))
    events.Reload()
    return [(point.step, round(point.value, 6)) for point in events.Scalars(name)]


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    how = settings("tensorboard")
    training(tmp_path, how, 0, 5, run=0, killed=True)
    assert curve(tmp_path, "train/loss") == [(step, step) for step in range(1, 6)]  # a kill loses nothing
    training(tmp_path, how, 3, 4, run=1, killed=True)
    training(tmp_path, how, 3, 6, run=2)
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.2), (5, 5.2), (6, 6.2)]
    assert curve(tmp_path, "validation/nats_per_token") == [(2, 1.0), (4, 2.0), (6, 3.0)]
    training(tmp_path, how, 0, 2, run=3)  # another recipe in the same folder
    assert curve(tmp_path, "train/loss") == [(1, 1.3), (2, 2.3)]


def test_tensorboard_asked_for_in_the_middle_has_the_beginning_too(tmp_path: Path) -> None:
    training(tmp_path, settings(), 0, 4, run=0)
    training(tmp_path, settings("tensorboard"), 2, 4, run=1)
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.1), (4, 4.1)]


class Service:
    """Takes the place of the package wandb: one history a run id, which steps may only be added to."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, float]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.finished = 0
        self.api = SimpleNamespace(api_key=None)
        self.Settings = SimpleNamespace

    def init(self, **asked: Any) -> Any:
        self.asked.append(asked)
        history = self.runs.setdefault(asked["id"], [])

        def log(points: dict[str, float], *, step: int) -> None:
            assert all(step > taken for taken, _ in history), "a step was sent twice"
            history.append((step, points["train/loss"]))

        return SimpleNamespace(log=log, finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setitem(sys.modules, "wandb", made)  # pyright: ignore
    monkeypatch.setenv("WANDB_MODE", "offline")
    return made


def test_wandb_gets_every_step_once_and_goes_on_with_its_run(service: Service, tmp_path: Path) -> None:
    how = settings("wandb")
    training(tmp_path, how, 0, 5, run=0, killed=True)
    training(tmp_path, how, 3, 4, run=1, killed=True)
    training(tmp_path, how, 3, 7, run=2)
    (history,) = service.runs.values()
    assert history == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, 6.2), (7, 7.2)]
    assert {asked["resume"] for asked in service.asked} == {"allow"} and service.finished == 1
    assert service.asked[0]["config"]["learning_rate"] == 3e-4 and service.asked[0]["name"].endswith("/student")
    training(tmp_path, how, 0, 2, run=3)  # from the start: a run of its own
    assert [len(steps) for steps in service.runs.values()] == [7, 2]


def test_wandb_never_asks_who_you_are(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MissingEnvironment, match=r"nobody is logged in .*; wandb login, or set WANDB_MODE=offline"):
        training(tmp_path, settings("wandb"), 0, 1, run=0)
    assert not service.runs


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else find(asked, *rest))
    with pytest.raises(MissingEnvironment, match=rf"'train.report_to' {name} needs .*pip install 'potstill\[{name}\]'"):
        require_sinks(settings(name))
    require_sinks(settings())


@pytest.mark.wandb
def test_the_real_wandb_writes_offline_runs(tmp_path: Path) -> None:
    """`make test-wandb`: what its own reader finds in the files of a killed and a resumed process."""
    os.environ["WANDB_MODE"] = "offline"
    how = settings("wandb")
    training(tmp_path, how, 0, 4, run=0)
    training(tmp_path, how, 2, 6, run=1)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    run_id = json.loads((tmp_path / "wandb" / "student.json").read_text())["id"]
    assert len(files) == 2 and all(file.name == f"run-{run_id}.wandb" for file in files)
    end = time.monotonic() + 30  # W&B's own process may still be writing
    while (found := [history(file) for file in files]) != [[1, 2, 3, 4], [5, 6]] and time.monotonic() < end:
        time.sleep(0.2)
    assert found == [[1, 2, 3, 4], [5, 6]]


def history(file: Path) -> Sequence[int]:
    """The steps in a file of W&B's own: records in LevelDB's log format behind seven bytes of header."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    data, at, part, steps = file.read_bytes(), 7, b"", list[int]()
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:  # a record's header never crosses a block
            at += 32_768 - at % 32_768
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            steps += [record.history.step.num] if record.HasField("history") else []
            part = b""
    return steps
