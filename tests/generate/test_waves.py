"""What is asked, how often, and what becomes of answers that are refused, cut off or not wanted any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from data_runs import query, write_recipe

from loopback import Loopback, loopback
from potstill.errors import InputError, TeacherError
from potstill.generate.stage import generate
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.records import Message, Prompt, Sample
from potstill.store.requests import Intent, Outcome, Requests
from potstill.store.run import open_run
from potstill.store.samples import Written


def recipe(folder: Path, server: Loopback, *more: str, prompts: int = 10, **generate: object) -> Recipe:
    return load_recipe(write_recipe(folder, server.url, prompts=prompts, engine={"attempts": 3}, **generate), more)


def test_more_is_asked_only_where_it_is_wanted(tmp_path: Path) -> None:
    """Waves of two until an answer is long; at most six. The stub's answers have 3 to 12 words."""
    seen: list[int] = []

    def wanted(_: Prompt, samples: Sequence[Sample]) -> int:
        seen.append(len(samples))
        return 0 if any(len(s.text.split()) > 9 for s in samples) else 2

    with loopback() as server:
        asked = recipe(tmp_path, server, n=1)
        with open_run(tmp_path / "run", asked) as run:
            found = generate(asked, run, wanted=wanted, most=6)
        counts = query(tmp_path / "run", "SELECT question, count(*), max(text) FROM answers GROUP BY question")
        long = dict(
            query(
                tmp_path / "run",
                "SELECT question, max(length(text) - length(replace(text, ' ', '')) + 1) > 9 FROM answers GROUP BY 1",
            )
        )
        assert {n for _, n, _ in counts} <= {2, 4, 6} and server.attempts() == found.exported == sum(
            n for _, n, _ in counts
        )
        assert all(long[question] or n == 6 for question, n, _ in counts)
        assert found.settled == {"done": sum(long.values()), "gave up": 10 - sum(long.values())} and set(seen) <= {
            0,
            2,
            4,
            6,
        }


def test_a_refused_prompt_is_given_up_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, n=2)
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write(json.dumps({"text": "REFUSE this"}) + "\n")
        found = Run(asked, tmp_path / "run").generate()
        assert found.exported == 20 and found.settled == {"done": 10, "gave up": 1}
        reasons = query(tmp_path / "run", "SELECT DISTINCT given_up FROM answers WHERE given_up IS NOT NULL")
        assert reasons == [("refused: these messages are not answered",)]
        before = server.attempts()
        assert Run(asked, tmp_path / "run").generate().exported == 20 and server.attempts() == before


def test_a_server_that_refuses_everything_is_left_after_twenty(tmp_path: Path) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, n=1)
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": f"REFUSE {i}"}) + "\n" for i in range(900)))
        with pytest.raises(TeacherError, match=r"refused the request .HTTP 400"):
            Run(asked, tmp_path / "run").generate()
        assert server.attempts() < 300


def refusals(folder: Path) -> list[tuple[str, str]]:
    return query(
        folder, "SELECT DISTINCT given_up, settled FROM answers a JOIN asks USING (question) WHERE given_up > ''"
    )


def test_a_few_refusals_and_no_answer_are_not_the_last_word(tmp_path: Path) -> None:
    with loopback(most_tokens=10) as server:
        asked, run = recipe(tmp_path, server, prompts=5, n=1, max_tokens=20), Run
        for attempts in (5, 10):
            with pytest.raises(TeacherError, match="not one of the 5 prompts was answered: refused: these messages"):
                run(asked, tmp_path / "run").generate()
            assert server.attempts() == attempts
            assert refusals(tmp_path / "run") == [("tried in vain: refused: these messages are not answered", "failed")]
        mended = recipe(tmp_path, server, "teacher.engine.limit_field=max_completion_tokens", prompts=5, max_tokens=20)
        assert run(mended, tmp_path / "run").generate().exported == 5


def test_a_refusal_before_the_first_answer_is_final_once_there_is_one(tmp_path: Path) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, "teacher.engine.in_flight=1", n=1)
        others = (tmp_path / "prompts.jsonl").read_text()
        (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": "REFUSE this"}) + "\n" + others)
        found = Run(asked, tmp_path / "run").generate()
        assert found.settled == {"done": 10, "gave up": 1} and found.said == {
            "refused": "these messages are not answered"
        }
        assert refusals(tmp_path / "run") == [("refused: these messages are not answered", "gave up")]


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ("headers={x-tier: batch}", 1), ("query={api-version: '2'}", 1), ("names={top_p: topP}", 1),
        ("limit_field=max_completion_tokens", 1), ("in_flight=3", 0), ("patience=9.0", 0), ("attempts=4", 0),
    ],
)  # fmt: skip
def test_what_was_refused_is_open_again_when_the_wire_changes(tmp_path: Path, change: str, asked_again: int) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, n=1)
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write(json.dumps({"text": "REFUSE this"}) + "\n")
        assert Run(asked, tmp_path / "run").generate().exported == 10
        before = server.attempts()
        prompts = (tmp_path / "prompts.jsonl").read_text()
        otherwise = recipe(tmp_path, server, f"teacher.engine.{change}", n=1)
        (tmp_path / "prompts.jsonl").write_text(prompts)
        for _ in range(2):
            assert Run(otherwise, tmp_path / "run").generate().exported == 10
        assert server.attempts() - before == asked_again


def test_a_canned_answer_that_is_added_later_is_found(tmp_path: Path) -> None:
    canned = tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": f"what of film {i}?", "answer": "good"}) + "\n" for i in range(3)]
    path = write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=3)
    asked = load_recipe(path, [f"teacher.engine={{kind: canned, answers: {canned}}}"])
    for known in (2, 3):
        canned.write_text("".join(lines[:known]))
        assert Run(asked, tmp_path / "run").generate().exported == known


def test_two_teachers_that_take_turns_in_one_ledger_do_not_open_each_others_refusals(tmp_path: Path) -> None:
    """As the tries of a rescue do."""

    def prompt(name: str) -> Prompt:
        return Prompt(id=name, split="train", messages=(Message(role="user", content=name),))

    with Requests(tmp_path / "ledger.sqlite") as requests, requests.transaction():
        for number, (name, wire) in enumerate((("a", "A"), ("b", "B"))):
            requests.put_asks([(prompt(name), name.encode())])
            assert not requests.begin(wire)
            (attempt,) = requests.send([Intent(question=number + 1, sample=0, samples=1, max_tokens=1, worst=0)])
            requests.close([Outcome(attempt=attempt, state="read")])
            row = {"question": number + 1, "sample": 0, "attempt": attempt, "max_tokens": 1}
            requests.put_written([Written(**row, given_up="refused: no")])
            requests.settle(number + 1, "gave up")
        for name, wire, settled in (("a", "A", "gave up"), ("b", "B", "gave up"), ("a", "B", None), ("a", "A", None)):
            requests.put_asks([(prompt(name), name.encode())])
            requests.settle(1 if name == "a" else 2, "gave up")
            assert requests.begin(wire)
            assert requests.settled_by_reason() == ({settled: 1} if settled else {})


def test_nobody_at_the_address_is_told_after_three_tries(tmp_path: Path) -> None:
    asked = load_recipe(write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=400))
    with pytest.raises(TeacherError) as said:
        Run(asked, tmp_path / "run").generate()
    assert said.value.problem == "no server answers at http://127.0.0.1:9/v1: the connection was refused"
    assert "vllm serve MODEL --port 9" in said.value.way_out
    assert 3 <= query(tmp_path / "run", "SELECT count(*) FROM attempts")[0][0] <= 3 * 16


def test_a_server_that_has_answered_is_waited_for(tmp_path: Path) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, "teacher.engine.patience=0.5", prompts=5)
        assert Run(asked, tmp_path / "run").generate(limit=2).exported == 2
    with pytest.raises(TeacherError, match=r"no answer for .* s, most often: no connection"):
        Run(asked, tmp_path / "run").generate()


def test_what_failed_too_often_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    with loopback(faults=1, kinds="500") as server:
        asked = recipe(tmp_path, server)
        with pytest.raises(TeacherError, match="not one of the 10 prompts was answered: server error: no:"):
            Run(asked, tmp_path / "run").generate()
        assert query(tmp_path / "run", "SELECT DISTINCT settled FROM asks") == [("failed",)] and server.attempts() == 30
    with loopback() as server:
        moved = load_recipe(tmp_path / "recipe.yaml", [f"teacher.engine.url={server.url}"])
        found = Run(moved, tmp_path / "run").generate()
        assert found.settled == {"done": 10} and found.exported == 10 and server.attempts() == 10


@pytest.mark.parametrize(
    ("policy", "exported", "attempts"),
    [(["generate.truncated=keep"], 10, 10), (["generate.truncated=drop"], None, 10),
     (["generate.truncated=longer", "generate.longest=16"], 10, None)],
)  # fmt: skip
def test_a_cut_off_answer_is_kept_dropped_or_asked_longer(
    tmp_path: Path, policy: list[str], exported: int | None, attempts: int | None
) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server, *policy, n=1, max_tokens=4)
        found = Run(asked, tmp_path / "run").generate()
        cut = query(tmp_path / "run", "SELECT count(*) FROM answers WHERE cut_off")[0][0]
        assert found.exported == (exported if exported is not None else 10 - cut)
        assert (cut, server.attempts() > 15) == (0, True) if attempts is None else cut > 5 and server.attempts() == 10
        # A higher limit asks again for what was cut off, and for nothing else.
        before = server.attempts()
        more = recipe(tmp_path, server, n=1, max_tokens=50)
        assert Run(more, tmp_path / "run").generate().exported == 10
        assert server.attempts() - before == cut


def test_a_longer_answer_that_is_refused_is_given_up_and_fewer_are_exported_where_fewer_are_wanted(
    tmp_path: Path,
) -> None:
    with loopback(most_tokens=6) as server:
        longer = ("generate.truncated=longer", "generate.longest=64")
        found = Run(recipe(tmp_path, server, *longer, n=2, max_tokens=3), tmp_path / "run").generate()
        short = query(tmp_path / "run", "SELECT count(*) FROM answers WHERE NOT cut_off")[0][0]
        assert found.exported == short < 20 and set(found.settled) <= {"done", "gave up"}
        assert server.attempts() <= 3 * 20
        kept = recipe(tmp_path, server, n=1, max_tokens=3)
        assert Run(kept, tmp_path / "run").generate().exported == 10


def test_prompts_that_ask_the_same_are_asked_once(tmp_path: Path) -> None:
    with loopback() as server:
        asked = recipe(tmp_path, server)
        rows = [{"text": "one"}, {"text": "two"}, {"text": "one"}, {"text": "  "}]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert Run(asked, tmp_path / "run").generate().exported == 2 and server.attempts() == 2
        left_out = query(tmp_path / "run", "SELECT value FROM marks WHERE name = 'left out'")
        assert json.loads(left_out[0][0]) == {"empty prompt": 1, "duplicate text": 1}
        rows = [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(InputError, match="the id 'a' stands on two different prompts"):
            Run(load_recipe(tmp_path / "recipe.yaml", ["prompts.columns.id=id"]), tmp_path / "run").generate()


def test_a_reply_that_was_kept_but_not_read_is_read_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between the two transactions: after the raw reply, before what it says."""
    from potstill.store.requests import Requests

    close: Callable[..., None] = Requests.close

    def die(self: Requests, outcomes: Sequence[object]) -> None:
        if outcomes:
            raise SystemError("killed")
        close(self, outcomes)

    with loopback() as server:
        asked = recipe(tmp_path, server)
        with monkeypatch.context() as patch:
            patch.setattr(Requests, "close", die)
            with pytest.raises(SystemError):
                Run(asked, tmp_path / "run").generate()
        kept = query(tmp_path / "run", "SELECT count(*) FROM attempts WHERE state = 'replied'")[0][0]
        assert kept > 0
        before = server.attempts()
        assert Run(asked, tmp_path / "run").generate().exported == 10
        assert server.attempts() - before == 10 - kept
