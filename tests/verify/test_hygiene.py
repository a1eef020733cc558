"""Duplicates and contamination are found, and clean data is left alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.select import Select
from potstill.records import Message, Prompt, Sample
from potstill.verify.hygiene import Contamination, Exact, Near
from potstill.verify.stage import _Gate  # pyright: ignore[reportPrivateUsage]
from potstill.verify.words import words

VOCABULARY = [f"w{i}" for i in range(5000)]


def text(draw: random.Random, length: int) -> list[str]:
    return draw.choices(VOCABULARY, k=length)


def test_a_hundred_planted_overlaps_in_ten_thousand_rows_are_found_and_nothing_else() -> None:
    draw = random.Random(0)
    evaluation = [text(draw, draw.randint(5, 60)) for _ in range(500)]
    rows = [text(draw, draw.randint(10, 80)) for _ in range(10_000)]
    planted = set(draw.sample(range(len(rows)), 100))
    for i in planted:
        source = next(e for e in draw.sample(evaluation, 500) if len(e) >= 13)
        start = draw.randint(0, len(source) - 13)
        at = draw.randint(0, len(rows[i]))
        # other case, other punctuation: the words count
        rows[i][at:at] = [w.upper() + "," for w in source[start : start + 13]]
    known = Contamination((" ".join(e) for e in evaluation), size=13)
    found = {i: evidence for i, row in enumerate(rows) if (evidence := known.evidence(" ".join(row)))}
    assert set(found) == planted
    whole = [" ".join(e) for e in evaluation]
    assert all(any(evidence in e for e in whole) for evidence in found.values())


def test_a_short_evaluation_text_counts_as_a_whole_only() -> None:
    known = Contamination(["What is two plus two?", "Four"], size=8)
    assert known.evidence("what is two plus TWO") == "what is two plus two"
    assert known.evidence("Tell me: what is two plus two, and why?") == "" and known.evidence("four") == "four"
    assert known.evidence("") == ""


@given(st.lists(st.text(max_size=20), max_size=20))
def test_exact_duplicates_are_those_of_the_same_words(texts: list[str]) -> None:
    exact = Exact()
    seen: set[tuple[str, ...]] = set()
    for one in texts:
        key = tuple(words(one))
        assert exact.seen(one) == (key in seen)
        seen.add(key)


def test_near_duplicates_beyond_the_overlap_are_dropped_and_others_kept() -> None:
    draw = random.Random(1)
    near = Near(0.7)
    base = [text(draw, 60) for _ in range(200)]
    assert [near.seen(" ".join(b)) for b in base] == [""] * 200
    close = [[*b[:-2], "other", "end"] for b in base]  # 56 of 60 triples are the same: Jaccard 0.93
    assert sum(near.seen(" ".join(c)) != "" for c in close) >= 198
    half = [[*b[:30], *text(draw, 30)] for b in base]  # Jaccard about 0.32
    assert sum(near.seen(" ".join(h)) != "" for h in half) <= 2
    assert "word triples" in near.seen(" ".join(base[0]))


def test_languages_without_blanks_have_words_too() -> None:
    question = "一列火车早上九点从北京出发开往上海，全程一千三百公里，平均每小时三百公里，几点能够到达？"
    known = Contamination([question], size=8)
    assert known.evidence(f"请回答下面的问题。{question}谢谢。")
    assert known.evidence("一列火车早上七点从广州出发开往武汉，请问车上有多少乘客？") == ""
    near = Near(0.7)
    assert near.seen(question) == "" and near.seen(f"{question}请回答。") != ""
    assert near.seen("今天的天气非常好，所以我们决定带着孩子们一起到公园里去散步和放风筝。") == ""
    thai = "รถไฟออกจากกรุงเทพเวลาเก้าโมงเช้าและไปถึงเชียงใหม่ตอนหกโมงเย็นใช้เวลากี่ชั่วโมง"
    assert Contamination([thai], size=8).evidence("ถามว่า " + thai + " ครับ")


def test_the_whole_conversation_counts(tmp_path: Path) -> None:
    held = "A train leaves Graz at nine with ninety people and at Bruck a third of them get off so how many are left"
    (tmp_path / "held.jsonl").write_text(json.dumps({"q": held}))
    gate = _Gate(Select.model_validate({"evaluation": {"source": str(tmp_path / "held.jsonl"), "columns": ("q",)}}))

    def refusal(*turns: str) -> str:
        roles = ("user", "assistant") * len(turns)
        messages = tuple(Message(role=role, content=said) for role, said in zip(roles, turns, strict=False))
        return gate(Prompt(id="p", split="train", messages=messages), Sample(prompt_id="p", text="Yes."))

    assert refusal("The sun is a star.", "Indeed.", "Is that right?") == ""
    assert refusal("Spiders have eight legs.", "They do.", "Is that right?") == ""  # the last turn is not all
    assert refusal("The sun is a star.", "Indeed.", "Is that right?") == "duplicate"
    assert refusal(held, "Sixty.", "Thanks, and as a word?").startswith("its prompt is in the evaluation set")
    assert refusal("Hello.", "Hi.", held).startswith("its prompt is in the evaluation set")
