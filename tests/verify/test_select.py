"""Selection: laws that hold for any verdicts, and each rule where it decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.checks import Length, Majority, Verify
from potstill.recipe.select import Select
from potstill.records import Finding, Message, Prompt, Sample
from potstill.verify.select import KEPT, Judged, objections, settle, with_majority

PROMPT = Prompt(id="p", split="train", messages=(Message(role="user", content="?"),))
ALL_MAY = Verify(checks=(Length(kind="length"),))


def judged(index: int, opinion: str = "passed", *, text: str = "a", score: float | None = None) -> Judged:
    finding = Finding(opinion=opinion, reason="" if opinion == "passed" else "why", score=score, check="length@1")  # pyright: ignore[reportArgumentType]
    return Judged(prompt=PROMPT, sample=Sample(prompt_id="p", text=text, index=index), findings=(finding,))


def open_gate(_: Prompt, __: Sample) -> str:
    return ""


def kept(group: list[Judged], verification: Verify = ALL_MAY, **select: object) -> list[int]:
    settled, _ = settle(objections(group, verification), Select(**select), open_gate)  # pyright: ignore[reportArgumentType]
    return [one.sample.index for one in settled if one.kept]


opinions = st.lists(st.sampled_from(["passed", "failed", "undecided"]), min_size=1, max_size=8)


@given(opinions=opinions, keep=st.integers(1, 4), undecided=st.sampled_from(["drop", "keep"]))
def test_every_answer_has_its_place_and_a_reason(opinions: list[str], keep: int, undecided: str) -> None:
    group = [judged(i, opinion) for i, opinion in enumerate(opinions)]
    verification = Verify(checks=ALL_MAY.checks, undecided=undecided)  # pyright: ignore[reportArgumentType]
    settled, pair = settle(objections(group, verification), Select(keep=keep), open_gate)
    assert [one.sample for one in settled] == [one.sample for one in group]
    assert all(one.reason for one in settled)
    good = [o for o in opinions if o == "passed" or (o == "undecided" and undecided == "keep")]
    assert sum(one.kept for one in settled) == min(keep, len(good))
    assert not any(one.kept for one, o in zip(settled, opinions, strict=True) if o == "failed")
    assert (pair is not None) == (bool(good) and "failed" in opinions)
    if pair:
        assert pair[0].sample != pair[1].sample and "failed" in {f.opinion for f in pair[1].findings}


def test_the_best_are_kept() -> None:
    group = [judged(0, text="long one", score=0.2), judged(1, text="mid", score=0.9), judged(2, text="s", score=0.5)]
    assert kept(group) == [0]
    assert kept(group, prefer="shortest", keep=2) == [1, 2]
    assert kept(group, prefer="score") == [1]


def test_trivial_and_hopeless_prompts_are_dropped_with_a_reason() -> None:
    easy = [judged(0), judged(1)]
    settled, _ = settle(objections(easy, ALL_MAY), Select(pass_rate=(0.0, 0.9)), open_gate)
    assert [(one.reason, one.evidence) for one in settled] == [("prompt too easy", "100% passed")] * 2
    hard = [judged(0), judged(1, "failed"), judged(2, "failed")]
    settled, _ = settle(objections(hard, ALL_MAY), Select(pass_rate=(0.5, 1.0)), open_gate)
    assert [one.reason for one in settled] == ["prompt too hard", "length: why", "length: why"]


def test_the_next_best_takes_the_place_of_one_that_the_gate_refuses() -> None:
    settled, _ = settle(
        objections([judged(0), judged(1)], ALL_MAY), Select(), lambda _, s: "" if s.index else "duplicate: of x"
    )
    assert [(one.reason, one.evidence) for one in settled] == [("duplicate", "of x"), (KEPT, "")]


def test_a_majority_outvotes_and_a_tie_does_not() -> None:
    vote = Verify(checks=(Majority(kind="majority", extract=r"= (\d+)", share=0.5),))

    def group(*answers: str) -> list[Judged]:
        return [
            Judged(prompt=PROMPT, sample=Sample(prompt_id="p", text=a, index=i), findings=())
            for i, a in enumerate(answers)
        ]

    def reasons(*answers: str) -> list[str]:
        voted = objections(with_majority(group(*answers), vote.checks), vote)
        return [one.reason for one in settle(voted, Select(keep=9), open_gate)[0]]

    assert reasons("= 4", "so = 4", "= 5") == [KEPT, KEPT, "majority: outvoted"]
    assert reasons("= 4", "= 5", "= 4", "= 5") == ["majority: undecided, no majority"] * 4
    assert reasons("= 4", "= 4", "dunno") == [KEPT, KEPT, "majority: no answer found"]
    assert reasons("= 4", "= 4") == ["majority: undecided, fewer than three answers"] * 2
    assert reasons("= 4", "= 5", "= 6", "= 4", "x") == ["majority: undecided, no majority"] * 5
