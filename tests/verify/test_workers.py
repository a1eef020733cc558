"""Workers that hang or die cost a verdict, never the run; order and streaming hold whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from potstill.recipe.checks import Function, Length
from potstill.records import Prompt, Sample
from potstill.verify.workers import checked

ASK = Prompt(id="p", split="train", messages=())


def moody(_: Prompt, answer: str, __: str | None) -> bool | float | None:
    """What users' functions do on a bad day."""
    match answer:
        case "hang":
            time.sleep(999)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat":
            return bool([bytearray(1 << 30) for _ in range(64)])
        case "raise":
            raise KeyError(answer)
        case "shrug":
            return None
        case _:
            pass
    return float(answer) if answer[0].isdigit() else answer == "good"


def test_every_sample_gets_its_own_verdict_in_order() -> None:
    answers = ["good", "hang", "bad", "die", "0.9", "eat", "raise", "shrug", "0.1", "good"]
    check = Function(kind="function", name="test_workers:moody", seconds=1)
    rows = ((ASK, Sample(prompt_id="p", text=a)) for a in answers)
    found = list(checked(rows, [check, Length(kind="length")], processes=2))
    assert [sample.text for _, sample, _ in found] == answers
    opinions = [findings[0].opinion for _, _, findings in found]
    doubt = "undecided"
    assert opinions == ["passed", doubt, "failed", doubt, "passed", doubt, doubt, doubt, "failed", "passed"]
    reasons = [findings[0].reason for _, _, findings in found]
    assert reasons[1] == "took too long" and reasons[3] == "the check's process died"
    assert all(findings[1].opinion == "passed" for _, _, findings in found)
    assert found[4][2][0].score == 0.9


def test_samples_are_read_only_a_little_ahead() -> None:
    taken = 0

    def endless() -> Iterator[tuple[Prompt, Sample]]:
        nonlocal taken
        while True:
            taken += 1
            yield ASK, Sample(prompt_id="p", text="one two")

    results = checked(endless(), [Length(kind="length")], processes=2)
    for _ in range(1000):
        next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert taken < 4000
