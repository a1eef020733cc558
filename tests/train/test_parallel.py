"""Two processes give what one gives, checkpoints pass between any numbers of them, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_student_that_writes import recipe_in
from transformers import AutoModelForCausalLM

from potstill.pipeline import Run
from potstill.processes import Process
from potstill.store.checkpoints import Checkpoints
from potstill.train.batch import Row
from potstill.train.parallel import dealt

STEPS = 20


class Ranks:
    """Trainings of the same kept answers, each in a run folder of its own."""

    def __init__(self, folder: Path, student: Path, teacher: Path) -> None:
        self.folder = folder
        lessons = {"epochs": 4, "batch_size": 24, "learning_rate": 0.003, "pass_tokens": 200}
        recipe = recipe_in(folder, student, verify=None, evaluate=None, train=lessons)
        Run(recipe, folder / "kept").generate()
        scorer = f"train.scored_by={{model: '{teacher}', licence: mit}}"
        self.soft = ("train.method={kind: logit_kd, alpha: 0.3}", scorer)
        source = Path(__file__).parents[2] / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, run: str, count: int, *overrides: str, **job: Any) -> dict[str, Any]:
        if not (self.folder / run).is_dir():
            shutil.copytree(self.folder / "kept", self.folder / run)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"run": run, "count": count, "set": overrides, **job}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def trained(self, run: str, count: int, *overrides: str, **job: Any) -> list[dict[str, float]]:
        """What was logged of every step."""
        found = self(run, count, *overrides, **job)
        assert found["codes"] == [0] * count, found["said"]
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> Iterator[Ranks]:
    folder = tmp_path_factory.mktemp("ranks")
    made = Ranks(folder, tiny_model, make_tiny_model(folder / "teacher", seed=1))
    yield made
    assert made.process.stdin is not None and made.process.stdout is not None
    made.process.stdin.close()
    made.process.wait(200)  # it may not have begun on a busy machine
    made.process.stdout.close()


def agree(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and mine["tokens"] == other["tokens"]
        for name in ("loss", "gradient_norm"):
            assert mine[name] == pytest.approx(other[name], abs=1e-5), (mine["step"], name)


EACH: dict[str, tuple[str, ...]] = {
    "full": (),
    "adapters": ("student.lora={rank: 1, alpha: 4}",),  # parts of one row: a process has none of it
    "checkpointed": ("train.gradient_checkpointing=true",),
}


@pytest.mark.parametrize("name", list(EACH))
def test_two_processes_give_the_losses_of_one(ranks: Ranks, name: str) -> None:
    agree(ranks.trained(f"{name}-1", 1, *EACH[name]), ranks.trained(f"{name}-2", 2, *EACH[name]))
    one, two = (
        AutoModelForCausalLM.from_pretrained(ranks.folder / f"{name}-{count}" / "model", dtype=torch.float32)
        for count in (1, 2)
    )
    assert type(two) is type(one) and two.get_output_embeddings().weight is two.get_input_embeddings().weight
    for (here, mine), (there, other) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert here == there
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


def test_a_sharded_teacher_gives_the_losses_of_a_whole_one(ranks: Ranks) -> None:
    told = ("teacher.instructions='the film is good and the actors are wonderful, the script gives them nothing'",)
    agree(ranks.trained("soft-1", 1, *ranks.soft, *told), ranks.trained("soft-2", 2, *ranks.soft, *told))


def test_a_teacher_in_int8_is_cut_too(ranks: Ranks) -> None:
    int8 = (*ranks.soft, "train.scored_by.quantization=int8")
    one = ranks.trained("int8-1", 1, *int8)
    agree(one, ranks.trained("int8-2", 2, *int8))
    assert [row["loss"] for row in one] != [row["loss"] for row in ranks.trained("plain-1", 1, *ranks.soft)]


def test_in_half_precision_they_agree_as_far_as_it_goes(ranks: Ranks) -> None:
    one, two = (ranks.trained(f"half-{count}", count, *ranks.soft, half=True) for count in (1, 2))
    for mine, other in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-2)
        if "validation_nats_per_token" in mine:
            assert mine["validation_nats_per_token"] == pytest.approx(other["validation_nats_per_token"], rel=1e-2)


def test_signals_are_computed_once_for_all_processes(ranks: Ranks) -> None:
    kept = f"train.signals_folder='{ranks.folder / 'signals'}'"
    cached = (*ranks.soft, "train.signal={kind: top_k, k: 300}", kept)
    two = ranks.trained("cached-2", 2, *cached)
    agree(two, ranks.trained("cached-1", 1, *cached))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_from_a_checkpoint(ranks: Ranks, before: int, after: int) -> None:
    often = ("train.checkpoint_seconds=0.000001", "train.average=0.5")
    run = f"from-{before}"
    stopped = ranks(run, before, *often, stop=12)
    assert stopped["codes"] == [75] * before
    assert "the same command goes on" in stopped["said"][0] and all(not said for said in stopped["said"][1:])
    place = ranks.folder / run / "arms" / "student" / "checkpoints"
    assert sorted(folder.name for folder in place.iterdir()) == ["step-000010", "step-000011"]
    parts = [path.name for path in (place / "step-000011").glob("*.safetensors")]
    assert len(parts) == before and not list(place.rglob("*.distcp")) and not list(place.rglob(".metadata"))
    if before == 2:  # a damaged part is told, and the one before it used
        part = place / "step-000011" / sorted(parts)[1]
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
        found = Checkpoints(place).newest_unread()
        assert found is not None and found[1]["step"] == 10
    agree(ranks.trained(run, after, *often), ranks.trained("full-1", 1))


def test_one_process_initialises_nothing(ranks: Ranks) -> None:
    assert ranks("full-1", 1)["distributed"] is False


def test_who_is_left_alone_says_so_and_ends(ranks: Ranks) -> None:
    found = ranks("left", 2, fail=3)
    assert found["codes"] == [75, -9] and found["seconds"] < 60
    assert "another process of this training is gone; see what it said; the same command goes on" in found["said"][0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another verb": ({"verb": "verify"}, "torchrun started 2 processes, but 'potstill verify' is for one"),
    "own answers": (
        {"set": ["train.on_policy={max_tokens: 4}", "train.method.alpha=0"]},
        "'train.on_policy' is for one process, but torchrun started 2",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_for_one_process_is_refused(ranks: Ranks, name: str) -> None:
    job, said = REFUSED[name]
    job = {**job, "set": [*ranks.soft, *job.get("set", ())]}
    found = ranks("refused", 2, **job)
    assert found["codes"] == [2, 2] and said in found["said"][0]


def test_torchrun_does_all_of_a_recipe(tmp_path: Path, tiny_model: Path) -> None:
    lessons = {"epochs": 1, "batch_size": 24}
    recipe_in(tmp_path, tiny_model, verify=None, train=lessons)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "--", "potstill", "run", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model", "metrics.jsonl", "arms", "scores.json", "report.html"} <= made
    assert ended.stdout.count("student - base") == 1


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 8))
def test_examples_are_dealt_once_each_and_evenly(lengths: list[int], among: int) -> None:
    rows = [Row(prefix=(n,), target=(1,) * length) for n, length in enumerate(lengths)]
    hands = dealt(rows, among)
    assert sorted(row.prefix for hand in hands for row in hand) == sorted(row.prefix for row in rows)
    held = [sum(row.tokens for row in hand) for hand in hands]
    assert max(held) - min(held) <= max(lengths)
    assert hands == dealt(rows, among)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # a batch system's, without a place to meet
    assert Process.this() == Process(rank=0, count=1, local_rank=0)
