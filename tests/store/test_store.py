"""What goes into the run folder comes out, and a crash in between costs nothing that was finished."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DiskError, InputError, as_disk_error
from potstill.records import Example, Message, Prompt, Sample, Verdict
from potstill.store.checkpoints import Checkpoints
from potstill.store.examples import read_examples, write_examples
from potstill.store.files import write_atomic
from potstill.store.ledger import Ledger, Timing
from potstill.store.metrics import Metrics

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
floats = st.floats(-50, 0, allow_nan=False)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant"]),
    content=texts,
    reasoning_content=st.none() | texts,
    tool_calls=st.just(()) | st.just(({"name": "f", "arguments": {"x": 1}},)),
)
prompts = st.builds(
    Prompt,
    id=texts,
    split=st.sampled_from(["train", "validation", "test"]),
    messages=st.lists(messages, min_size=1, max_size=3).map(tuple),
    reference=st.none() | texts,
    grade=st.none() | st.floats(-4, 4),
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@given(found=st.lists(prompts, max_size=5, unique_by=lambda p: p.id))
def test_prompts_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, found: list[Prompt]) -> None:
    with Ledger(tmp_path_factory.mktemp("l") / "ledger.sqlite") as ledger:
        ledger.put_prompts(found, {"why": 3})
        assert ledger.prompts() == found
        assert ledger.counts("prompts") == {"why": 3}


@given(logp=st.lists(floats, min_size=2, max_size=4).map(tuple))
def test_samples_verdicts_and_predictions_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, logp: tuple[float, ...]
) -> None:
    sample = Sample(prompt_id="p", text="good", choice_logp=logp)
    verdict = Verdict(prompt_id="p", accepted=True, reason="accepted", answer="good", choice_p=logp)
    with Ledger(tmp_path_factory.mktemp("l") / "ledger.sqlite") as ledger:
        ledger.put_samples([("k", sample)], arm="teacher", batch=0, timing=Timing(1, 5, 0.5))
        ledger.put_verdicts([verdict])
        ledger.put_predictions("student", {"p": logp}, {"parameters": 3.0})
        assert ledger.samples() == {"p": sample} and ledger.sample_keys() == {"k"}
        assert ledger.verdicts() == {"p": verdict}
        assert ledger.predictions("student") == {"p": logp}
        assert ledger.measured("student") == {"parameters": 3.0}
        assert ledger.timing("teacher") == Timing(1, 5, 0.5)


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def two_then_fail() -> Iterator[tuple[str, Sample]]:
        yield "a", Sample(prompt_id="a", text="x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        ledger.put_samples(two_then_fail(), arm="teacher", batch=0, timing=Timing(1, 1, 1.0))
    assert ledger.samples() == {} and ledger.timing("teacher") == Timing(0, 0, 0.0)


def test_a_stage_is_finished_under_one_fingerprint(ledger: Ledger) -> None:
    assert ledger.finished("verify") is None
    ledger.finish("verify", "one", 1.5)
    assert ledger.finished("verify") == "one" and ledger.stage_seconds() == {"verify": 1.5}
    ledger.forget("verify")
    assert ledger.finished("verify") is None


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(InputError, match="is not a ledger"):
        Ledger(path)


def test_examples_are_readable_by_column_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    example = Example(
        prompt_id="1",
        messages=(Message(role="user", content="a film"),),
        answer="good",
        choice_p=(0.1, 0.9),
        teacher="t",
        licence="mit",
    )
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    write_examples(one, [example], ["bad", "good"])
    write_examples(two, [example], ["bad", "good"])
    assert read_examples(one) == [example]
    assert one.read_bytes() == two.read_bytes()


def test_only_whole_checkpoints_count_and_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.newest() is None
    for step in (2, 5, 12):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"tokens": step})
    (tmp_path / "c" / ".draft-half").mkdir()
    found = checkpoints.newest()
    assert found is not None and found[1] == {"tokens": 12, "step": 12}
    assert torch.equal(found[0]["w"], torch.tensor([12.0, 12.0]))
    assert sorted(p.name for p in (tmp_path / "c").glob("step-*")) == ["step-000005", "step-000012"]


def test_metrics_rewind_and_survive_a_torn_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.append({"arm": "student", "step": step})
        metrics.append({"arm": "other", "step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "stud')
    metrics.rewind("student", 1)
    assert [r["step"] for r in metrics.rows("student")] == [1]
    assert [r["step"] for r in metrics.rows("other")] == [1, 2, 3]


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "f"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognised_however_it_is_said(error: Exception) -> None:
    assert isinstance(as_disk_error(error), DiskError)
    assert as_disk_error(ValueError("something else")) is None
