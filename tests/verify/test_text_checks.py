"""Checks on text: every one passes, fails and abstains where it should, and none raises whatever it is given."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from potstill.recipe.checks import Check
from potstill.records import Message, Prompt, Sample
from potstill.verify.check import look
from potstill.verify.text import code_of, extracted, last_number, normalised, parsed

ADAPTER: TypeAdapter[Check] = TypeAdapter(Check)
ORDER = "Hi, I am Ana Ruiz from Lisbon. Please send 3 red lamps and 1,250 cables. Total 41.50 euros."
THOUGHT = Sample(prompt_id="p", text="42", reasoning="Six times seven.")


def said(check: dict[str, object], answer: str, *, reference: str | None = None, prompt: str = ORDER) -> str:
    asked = Prompt(id="p", split="train", messages=(Message(role="user", content=prompt),), reference=reference)
    found = look(ADAPTER.validate_python(check), asked, Sample(prompt_id="p", text=answer))
    assert found.check.startswith(str(check["kind"]) + "@") and (found.reason or found.opinion == "passed")
    return found.opinion


SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
CASES: list[tuple[dict[str, object], str, str | None, str]] = [
    ({"kind": "exact"}, " 42 ", "42", "passed"),
    ({"kind": "exact"}, "Forty", "forty", "failed"),
    ({"kind": "exact"}, "42", None, "undecided"),
    ({"kind": "exact", "normalise": True}, "  The\nCAT. ", "the cat", "passed"),
    ({"kind": "exact", "normalise": True}, "ﬁne", "fine", "passed"),  # a ligature
    ({"kind": "exact", "extract": r"Answer: (.*)"}, "Answer: 4\nAnswer: 5", "5", "passed"),
    ({"kind": "exact", "extract": r"Answer: (.*)"}, "it is 5", "5", "failed"),
    ({"kind": "one_of", "choices": ("yes", "no")}, "yes", None, "passed"),
    ({"kind": "one_of", "choices": ("yes", "no")}, "Yes.", None, "failed"),
    ({"kind": "one_of", "choices": ("yes", "no"), "normalise": True}, "Yes.", None, "passed"),
    ({"kind": "regex", "pattern": r"\bcat\b"}, "a cat sat", None, "passed"),
    ({"kind": "regex", "pattern": r"\bcat\b"}, "concat", None, "failed"),
    ({"kind": "regex", "pattern": "As an AI", "absent": True}, "As an AI model", None, "failed"),
    ({"kind": "regex", "pattern": "As an AI", "absent": True}, "Certainly", None, "passed"),
    ({"kind": "number"}, "so it is 1,250.", "1250", "passed"),
    ({"kind": "number"}, "-3", "3", "failed"),
    ({"kind": "number"}, "3e2", "300", "passed"),
    ({"kind": "number"}, "none", "3", "failed"),
    ({"kind": "number"}, "3", "three", "undecided"),
    ({"kind": "number", "absolute": 0.01}, "3.14", "3.1416", "passed"),
    ({"kind": "number"}, "3.14", "3.1416", "failed"),
    ({"kind": "json"}, '{"n": 1}', None, "passed"),
    ({"kind": "json"}, 'Sure:\n```json\n{"n": 1}\n```', None, "passed"),
    ({"kind": "json"}, "{n: 1}", None, "failed"),
    ({"kind": "json"}, '{"n": NaN}', None, "failed"),
    ({"kind": "json"}, "[" * 100_000, None, "failed"),
    ({"kind": "json", "shape": SHAPE}, '{"n": 1}', None, "passed"),
    ({"kind": "json", "shape": SHAPE}, '{"n": "1"}', None, "failed"),
    ({"kind": "json", "shape": SHAPE}, '{"n": 1, "m": 2}', None, "failed"),
    ({"kind": "json", "as_reference": True}, '{"b": 1.0, "a": [1]}', '{"a":[1],"b":1}', "passed"),
    ({"kind": "json", "as_reference": True}, '{"a": [1, 2]}', '{"a":[1]}', "failed"),
    ({"kind": "json", "as_reference": True}, "{}", None, "undecided"),
    ({"kind": "grounded"}, '{"name": "ana  ruiz", "n": 3, "total": 41.5}', None, "passed"),
    ({"kind": "grounded"}, '{"item": "red lamps", "more": [{"n": 1250}]}', None, "passed"),
    ({"kind": "grounded"}, '{"n": 4}', None, "failed"),
    ({"kind": "grounded"}, '{"name": "Ana"}', None, "passed"),
    ({"kind": "grounded"}, '{"name": "An"}', None, "failed"),  # no whole word
    ({"kind": "grounded"}, '{"name": null}', None, "failed"),
    ({"kind": "grounded"}, '{"urgent": true}', None, "passed"),
    ({"kind": "grounded", "fields": ("n",)}, '{"n": 3, "mood": "glad"}', None, "passed"),
    ({"kind": "grounded", "fields": ("n", "city")}, '{"n": 3}', None, "failed"),
    ({"kind": "length", "least": 2, "most": 3}, "one two", None, "passed"),
    ({"kind": "length", "least": 2, "most": 3}, "one", None, "failed"),
    ({"kind": "length", "unit": "characters", "most": 3}, "four", None, "failed"),
    ({"kind": "language", "language": "en"}, "the weather is fine and we go out", None, "passed"),
    ({"kind": "language", "language": "en"}, "das Wetter ist schön und wir gehen hinaus", None, "failed"),
    ({"kind": "language", "language": "en"}, "ok", None, "undecided"),
    ({"kind": "repetition"}, "every word here is a new one", None, "passed"),
    ({"kind": "repetition"}, "go on and on " * 20, None, "failed"),
    ({"kind": "repetition", "share": 1.0}, "The end. " + "I see. " * 10, None, "failed"),
    ({"kind": "repetition", "share": 1.0}, "ha " * 3, None, "passed"),
    ({"kind": "repetition"}, "1234567890123 " + "=" * 30, None, "failed"),
]


@pytest.mark.parametrize(("check", "answer", "reference", "wanted"), CASES)
def test_each_check(check: dict[str, object], answer: str, reference: str | None, wanted: str) -> None:
    assert said(check, answer, reference=reference) == wanted


def test_reasoning_is_whole_or_refused() -> None:
    check = ADAPTER.validate_python({"kind": "reasoning"})
    asked = Prompt(id="p", split="train", messages=())

    def opinion(**changes: object) -> str:
        fields = {"prompt_id": "p", "text": "42", "reasoning": "Six times seven.", **changes}
        return look(check, asked, Sample(**fields)).opinion  # pyright: ignore[reportArgumentType]

    assert opinion() == "passed"
    for broken in ({"reasoning": None}, {"reasoning": " "}, {"cut_off": True}, {"text": " "}, {"text": "</think> 42"}):
        assert opinion(**broken) == "failed"


TEXT_CHECKS = [check for check, *_ in CASES if check["kind"] != "language"]


@given(
    check=st.sampled_from(TEXT_CHECKS),
    answer=st.text(max_size=300),
    reference=st.none() | st.text(max_size=20),
    prompt=st.text(max_size=50),
)
def test_no_answer_makes_a_check_raise(
    check: dict[str, object], answer: str, reference: str | None, prompt: str
) -> None:
    said(check, answer, reference=reference, prompt=prompt)


@given(st.text(max_size=100))
def test_normal_forms_are_fixed_points(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(
    block=st.text(alphabet="ab c", min_size=3, max_size=30), turns=st.integers(5, 20)
)  # blanks at the end do not count
def test_a_loop_is_found_whatever_it_repeats(block: str, turns: int) -> None:
    text = block * turns
    if len(text.strip()) >= 12 + 2 * len(block):
        assert said({"kind": "repetition", "share": 1.0}, "x" + text) == "failed"


def test_a_long_answer_costs_little() -> None:
    start = time.monotonic()
    said({"kind": "repetition"}, "a" * 1_000_000 + "b")
    said({"kind": "grounded"}, '{"a": "' + "(" * 100_000 + '"}')
    assert time.monotonic() - start < 2


def test_what_is_read_out_of_an_answer() -> None:
    assert extracted(r"\\boxed\{(.*?)\}", r"\boxed{1} then \boxed{2}") == "2"
    assert last_number("between 1 and -.5") == -0.5 and last_number("1e999") is None and last_number("x") is None
    assert code_of("```python\na\n```\nand\n```text\nb\n```") == "a\n"
    assert code_of("```\nb\n```") == "b\n" and code_of("print(1)") == "print(1)"
    assert parsed("```json\n[1]\n```\n```json\n[2]\n```") == ([2], "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "regex", "pattern": "("},
        {"kind": "exact", "extract": "["},
        {"kind": "function", "name": "os.system"},
        {"kind": "one_of", "choices": ()},
        {"kind": "magic"},
    ],
)
def test_a_check_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
