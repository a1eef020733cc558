"""What goes into the run folder comes out, and a crash in between costs nothing that was finished."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DiskError, InputError, as_disk_error
from potstill.records import Example, Message, Prompt, Sample, as_tool_calls
from potstill.store.answers import write_answers
from potstill.store.checkpoints import Checkpoints, tensors_in, write_tensors
from potstill.store.examples import read_examples
from potstill.store.files import write_atomic
from potstill.store.metrics import Metrics
from potstill.store.requests import Intent, Outcome, Replied, Requests, Timing
from potstill.store.samples import Written
from potstill.store.stages import Stages
from potstill.store.tables import TURN, table

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
floats = st.floats(-50, 0, allow_nan=False)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant"]),
    content=texts,
    reasoning_content=st.none() | texts,
    name=st.none() | texts,
    tool_calls=st.just(()) | st.builds(lambda a: as_tool_calls([{"function": {"name": "f", "arguments": a}}]), texts),
    tool_call_id=st.none() | texts,
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
def ledger(tmp_path: Path) -> Iterator[Requests]:
    with Requests(tmp_path / "ledger.sqlite") as opened:
        yield opened


def ask(requests: Requests, *names: str) -> list[int]:
    """The number of each question."""
    given = (
        (Prompt(id=name, split="train", messages=(Message(role="user", content=name),)), name.encode())
        for name in names
    )
    with requests.transaction():
        requests.put_asks(given)
    return [one.question for one in requests.open_asks()]


def answer(question: int, **more: Any) -> Written:
    return Written(question=question, sample=0, attempt=1, max_tokens=9, text="good", **more)


@given(logprobs=st.lists(floats, min_size=2, max_size=4).map(tuple))
def test_answers_and_what_was_measured_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, logprobs: tuple[float, ...]
) -> None:
    path = tmp_path_factory.mktemp("l") / "ledger.sqlite"
    with Requests(path) as requests, Stages(path) as stages:
        (question,) = ask(requests, "p")
        with requests.transaction():
            requests.put_written([answer(question, choice_logprobs=logprobs)])
        stages.put_measured("student", {"parameters": logprobs[0]})
    with Requests(path) as requests, Stages(path) as stages:
        assert requests.first_answer("p") == Sample(
            prompt_id="p", text="good", choice_logprobs=logprobs, finish="unknown"
        )
        assert stages.measured("student") == {"parameters": logprobs[0]}


def test_what_is_measured_again_replaces_all_that_was_and_only_of_its_arm(tmp_path: Path) -> None:
    with Stages(tmp_path / "ledger.sqlite") as stages:
        for arm in ("student", "base"):
            stages.put_measured(arm, {"seconds": 1.5, "parameters": 3.0})
        stages.put_measured("student", {"seconds": 2.5})
        assert stages.measured("student") == {"seconds": 2.5}
        assert stages.measured("base") == {"seconds": 1.5, "parameters": 3.0} and stages.measured("teacher") == {}


def test_a_transaction_that_fails_leaves_nothing(ledger: Requests) -> None:
    first, second = ask(ledger, "a", "b")

    def two_then_fail() -> Iterator[Written]:
        yield answer(first)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError), ledger.transaction():
        ledger.send([Intent(question=second, sample=0, samples=1, max_tokens=9, worst=7)])
        ledger.put_written(two_then_fail())
    assert not list(ledger.samples()) and ledger.totals() == {} and ledger.timing() == Timing(0, 0, 0.0)


def test_what_asking_took_is_summed_over_what_is_asked_now(ledger: Requests) -> None:
    questions = ask(ledger, "a", "b")
    with ledger.transaction():
        sent = ledger.send([Intent(question=q, sample=0, samples=1, max_tokens=9, worst=7) for q in questions])
    with ledger.transaction():
        ledger.replied(Replied(attempt=number, raw=b"{}", seconds=0.25) for number in sent)
    assert [one.attempt for one in ledger.unread()] == sent
    with ledger.transaction():
        ledger.close([Outcome(attempt=number, state="read", prompt_tokens=5, cost=2) for number in sent])
    assert ledger.timing() == Timing(2, 10, 0.5)
    assert ledger.totals() == {"attempts": 2, "paid": 4, "prompt tokens": 10, "read attempts": 2}
    ask(ledger, "b", "c")
    assert ledger.timing() == Timing(1, 5, 0.25)


def test_a_stage_is_finished_under_one_fingerprint(tmp_path: Path) -> None:
    with Stages(tmp_path / "ledger.sqlite") as stages:
        assert stages.finished("verify") is None
        stages.finish("verify", "one", 1.5)
        assert stages.finished("verify") == "one" and stages.seconds() == {"verify": 1.5}
        stages.finish("verify", "two", 2.5)
        assert stages.finished("verify") == "two" and stages.seconds() == {"verify": 2.5}
        stages.forget("verify")
        assert stages.finished("verify") is None and stages.seconds() == {}


@pytest.mark.parametrize("opened", [Requests, Stages])
def test_a_file_that_is_no_ledger_is_refused(opened: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(InputError, match="is not a ledger"):
        opened(path)


SELECTED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("split", pa.string()),
        ("messages", pa.list_(TURN)),
        ("tools", pa.string()),
        ("weight", pa.float64()),
        ("choice_logprobs", pa.list_(pa.float64())),
        ("labelled_by", pa.string()),
        ("teacher", pa.string()),
        ("domain", pa.string()),
        ("licence", pa.string()),
    ]
)


def test_examples_come_back_and_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    row = {
        "prompt_id": "1",
        "index": 3,
        "split": "train",
        "messages": [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}],
        "tools": '[{"type": "function"}]',
        "weight": 0.5,
        "choice_logprobs": [-2.5, -0.1234567890123456],
        "labelled_by": "teacher",
        "teacher": "t",
        "licence": "mit",
    }
    example = Example(
        prompt_id="1",
        messages=(Message(role="user", content="a film"), Message(role="assistant", content="good")),
        tools=({"type": "function"},),
        weight=0.5,
        choice_logprobs=(-2.5, -0.1234567890123456),
        teacher="t",
        licence="mit",
    )
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    for path in (one, two):
        with table(path, SELECTED) as put:
            put(row)
    assert list(read_examples(one)) == [example]
    assert one.read_bytes() == two.read_bytes()


def test_answers_that_nobody_checked_are_examples_too(tmp_path: Path) -> None:
    prompt = Prompt(id="1", split="validation", messages=(Message(role="user", content="a film"),))
    sample = Sample(prompt_id="1", text="good", reasoning="so")
    write_answers(tmp_path / "answers.parquet", [(prompt, sample)], teacher="t", licence="mit")
    wanted = Example(
        prompt_id="1",
        split="validation",
        messages=(*prompt.messages, Message(role="assistant", content="good", reasoning_content="so")),
        teacher="t",
        licence="mit",
    )
    assert list(read_examples(tmp_path / "answers.parquet")) == [wanted]


def test_only_whole_checkpoints_count_and_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.newest_unread() is None
    for step in (2, 5, 12):
        with checkpoints.draft(step, {"tokens": step}) as draft:
            write_tensors(draft, {"w": torch.full((2,), float(step))})
    (tmp_path / "c" / ".draft-half").mkdir()
    found = checkpoints.newest_unread()
    assert found is not None and found[1] == {"tokens": 12, "step": 12}
    assert torch.equal(tensors_in(found[0])["w"], torch.tensor([12.0, 12.0]))
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
