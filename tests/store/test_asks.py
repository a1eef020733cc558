"""The ledger's prompts and answers: what goes in comes out, and a text that stands on several prompts is asked once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store import prompts

from potstill.errors import InputError
from potstill.records import Message, Prompt
from potstill.store.asks import question_key
from potstill.store.requests import Requests
from potstill.store.samples import Written
from potstill.store.stages import Stages

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}
CALLS = ({"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "\u00fc"}'}},)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Requests]:
    with Requests(tmp_path / "ledger.sqlite") as opened:
        yield opened


def asking(requests: Requests, asks: Sequence[tuple[Prompt, bytes]], *, weights: str | None = None) -> int:
    with requests.transaction():
        return requests.put_asks(asks, weights=weights)


def prompt(prompt_id: str, text: str, **more: object) -> Prompt:
    given = {"id": prompt_id, "split": "train", "messages": (Message(role="user", content=text),), **more}
    return Prompt(**given)  # pyright: ignore[reportArgumentType]


@given(found=st.lists(prompts, max_size=5, unique_by=lambda p: p.id))
def test_prompts_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, found: list[Prompt]) -> None:
    with Requests(tmp_path_factory.mktemp("l") / "ledger.sqlite") as requests:
        assert asking(requests, [(one, str(i).encode()) for i, one in enumerate(found)]) == 0
        assert list(requests.prompts()) == found
        assert [one.prompts for one in requests.open_asks()] == [(one,) for one in found]


def test_an_answer_comes_back_with_its_calls_and_every_bit_of_its_log_probabilities(ledger: Requests) -> None:
    asking(ledger, [(prompt("p", "why?", tools=(TOOL,)), b"k")])
    logprobs = (-0.1234567890123456789, -1e-300, float("-inf"))
    with ledger.transaction():
        ledger.put_written(
            [
                Written(
                    question=1, sample=0, attempt=1, max_tokens=9, text="", tool_calls=CALLS, choice_logprobs=logprobs
                )
            ]
        )
    ((asked, sample),) = ledger.samples()
    assert asked.tools == (TOOL,) and sample.tool_calls == CALLS and sample.choice_logprobs == logprobs
    assert sample.message == Message(role="assistant", content="", tool_calls=CALLS)
    (opened,) = ledger.open_asks()
    assert (opened.written[0].tool_calls, opened.written[0].choice_logprobs) == (CALLS, logprobs)


def test_a_text_with_two_references_is_two_prompts_and_one_question(ledger: Requests) -> None:
    asks = [
        (prompt("a", "why?", reference="1"), b"why"),
        (prompt("b", "how?", reference="1"), b"how"),
        (prompt("c", "why?", reference="2"), b"why"),
        (prompt("d", "why?", reference="2"), b"why"),
        (prompt("e", "why?"), b"why"),
    ]
    assert asking(ledger, asks) == 1  # d: the same text and the same reference as c
    assert ledger.prompt_ids() == ["a", "b", "c", "e"]
    opened = list(ledger.open_asks())
    assert [[one.id for one in question.prompts] for question in opened] == [["a", "c", "e"], ["b"]]
    assert [[one.id for one in question.prompts] for question in ledger.open_asks(limit=3)] == [["a", "c"], ["b"]]
    with ledger.transaction():
        ledger.put_written(
            Written(question=opened[0].question, sample=i, attempt=1, max_tokens=9, text=str(i)) for i in range(2)
        )
    found = [(one.id, one.reference, sample.prompt_id, sample.text) for one, sample in ledger.samples()]
    assert found == [(i, r, i, t) for i, r in (("a", "1"), ("c", "2"), ("e", None)) for t in "01"]
    assert ledger.count_answers(most=2) == 6
    ledger.settle_answered(2, at_least=None)
    assert ledger.settled_by_reason() == {"done": 3} and len(list(ledger.open_asks())) == 1


def test_answers_are_read_by_split(ledger: Requests) -> None:
    asking(ledger, [(prompt(name, name, split=name), name.encode()) for name in ("train", "validation", "test")])
    questions = {one.prompts[0].split: one.question for one in ledger.open_asks()}
    with ledger.transaction():
        ledger.put_written(
            Written(
                question=number, sample=0, attempt=1, max_tokens=9, text="x", given_up="no" if s == "test" else None
            )
            for s, number in questions.items()
        )
    assert [one.split for one, _ in ledger.samples()] == ["train", "validation"]
    assert [one.split for one, _ in ledger.samples(split="validation")] == ["validation"]
    assert [one.split for one in ledger.unanswered(most=1, cut_off=True)] == ["test"]
    assert not list(ledger.unanswered(most=1, cut_off=True, split="train"))


def test_other_weights_are_another_question_with_the_same_draws(ledger: Requests) -> None:
    def opened() -> list[tuple[int, bytes, bytes]]:
        return [(one.question, one.key, one.seed_key) for one in ledger.open_asks()]

    asking(ledger, [(prompt("p", "why?"), b"k")], weights="one")
    ((first, key, seed_key),) = opened()
    asking(ledger, [(prompt("p", "why?"), b"k")], weights="other")
    ((second, other_key, other_seed_key),) = opened()
    assert first != second and key != other_key and seed_key == other_seed_key == b"k"
    asking(ledger, [(prompt("p", "why?"), b"k")], weights="one")
    assert opened() == [(first, question_key(b"k", "one"), b"k")]
    assert question_key(b"k", None) == b"k"


@pytest.mark.parametrize("opened", [Requests, Stages])
def test_a_ledger_of_another_version_is_refused_as_it_is(tmp_path: Path, opened: type[Requests | Stages]) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE samples (key TEXT NOT NULL, text TEXT)")
    with pytest.raises(InputError, match="written by another version of potstill"):
        opened(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("samples",)]


def test_one_ledger_is_opened_by_all_of_its_readers(tmp_path: Path) -> None:
    for _ in range(2):
        with Requests(tmp_path / "ledger.sqlite"), Stages(tmp_path / "ledger.sqlite") as stages:
            assert stages.finished("generate") is None
