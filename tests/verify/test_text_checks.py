"""Checks on text: every one passes, fails and abstains where it should, and none raises whatever it is given."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from potstill.errors import InputError
from potstill.recipe.checks import Check
from potstill.records import Message, Prompt, Sample
from potstill.verify.check import look
from potstill.verify.choice import chosen
from potstill.verify.fences import code_in, json_in
from potstill.verify.programs import require
from potstill.verify.text import extracted, last_number, normalised, numbers_in

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
    ({"kind": "number"}, "It falls to −5.", "-5", "passed"),
    ({"kind": "number"}, "It falls to −5.", "5", "failed"),
    ({"kind": "number"}, "in the years 2010-2015", "2015", "passed"),
    ({"kind": "number"}, "in the years 2010–2015", "-2015", "failed"),
    ({"kind": "number"}, "1\u202f234\u202f567 in all", "1234567", "passed"),
    ({"kind": "number"}, "so it is (-3)", "-3", "passed"),
    ({"kind": "multiple_choice"}, "(B)", "B", "passed"),
    ({"kind": "multiple_choice"}, "B) Paris", "(B)", "passed"),
    ({"kind": "multiple_choice"}, "A", "B", "failed"),
    ({"kind": "multiple_choice"}, "I do not know.", "B", "failed"),
    ({"kind": "multiple_choice"}, "B", None, "undecided"),
    ({"kind": "multiple_choice", "choices": ("1", "2", "3")}, "The answer is 3.", "3", "passed"),
    ({"kind": "multiple_choice", "extract": "So: (.*)"}, "So: **D**", "D", "passed"),
    ({"kind": "json", "prose": True}, 'Here it is: {"n": [1]}. Good luck {all}!', None, "passed"),
    ({"kind": "json"}, 'Here it is: {"n": [1]}. Good luck!', None, "failed"),
    ({"kind": "json", "as_reference": True}, '{"n": true}', '{"n": 1}', "failed"),
    ({"kind": "json", "as_reference": True}, '{"n": [0]}', '{"n": [false]}', "failed"),
    ({"kind": "json", "as_reference": True}, "[" * 200 + "]" * 200, "[" * 200 + "]" * 200, "passed"),
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
    ({"kind": "grounded"}, '{"name": "Ana Ruiz", "n": 3, "total": -41.5}', None, "failed"),
    ({"kind": "length", "least": 2, "most": 3}, "one two", None, "passed"),
    ({"kind": "length", "least": 2, "most": 3}, "one", None, "failed"),
    ({"kind": "length", "unit": "characters", "most": 3}, "four", None, "failed"),
    ({"kind": "language", "language": "en"}, "the weather is fine and we go out", None, "passed"),
    ({"kind": "language", "language": "en"}, "das Wetter ist schön und wir gehen hinaus", None, "failed"),
    ({"kind": "language", "language": "en"}, "ok", None, "passed"),  # too short to tell
    ({"kind": "language", "language": "en"}, "今天天气很好我们出去玩吧朋友们", None, "failed"),
    ({"kind": "length", "least": 5, "most": 9}, "今天天气很好我们出去玩吧朋友们", None, "passed"),
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


F = "`" * 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'{F}json\r\n{{"n": 1}}\r\n{F}', {"n": 1}),
        (f'{F}json\n{{"code": "use {F}py{F} marks"}}\n{F}', {"code": f"use {F}py{F} marks"}),
        (f'{F}json\n{{"code": "{F}sh\\nls\\n{F}"}}\n{F}', {"code": f"{F}sh\nls\n{F}"}),
        (f'So:\n{F}json title="a.json"\n[1]\n{F}\nDone.', [1]),
        (f"So:\n{F}JSON\n[1]", [1]),  # left open
        (f"~~~~json\n[1]\n~~~\n~~~~\nand\n{F}sh\nls\n{F}", None),
        (f"~~~~json\n[1]\n~~~~~\nand\n{F}sh\nls\n{F}", [1]),
        (f"1. As asked:\n   {F}json\n   [1,\n    2]\n   {F}", [1, 2]),
    ],
)
def test_a_fence_is_what_commonmark_says(text: str, value: object) -> None:
    assert json_in(text)[0] == value


def test_blocks_of_code_belong_together() -> None:
    both = f"First\n{F}python\r\nimport math\r\n{F}\r\nthen\n{F}py\ndef f(x):\n    return math.sqrt(x)\n{F}"
    assert code_in(both) == "import math\n\ndef f(x):\n    return math.sqrt(x)\n"
    again = [f"{F}python\ndef f(x):\n    return {y}\n{F}\nor:" for y in ("0", "x")]
    assert code_in("\n".join([*again, f"{F}python\nf(2)\n{F}"])) == "def f(x):\n    return x\n"
    documented = f'{F}python\ndef f():\n    """\n    {F}\n    f()\n    {F}\n    """\n    return 1\n{F}\n{F}\n1\n{F}'
    assert code_in(documented).endswith("return 1\n") and code_in(documented).count(F) == 2
    assert code_in("x = 1\r\ny = 2") == "x = 1\ny = 2"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *((form, "B") for form in ("B", "(B)", "**B**", "B) Paris", "B. Paris", "(B) Paris", "b", "[B]", "B: Paris")),
        *((form, "B") for form in ("Answer: B", "The answer is B.", "**Answer: (B)**", "The correct option is **B**.")),
        ("The answer is B. Note that A is a common slip.", "B"),
        ("The answer is A because it floats.", "A"),
        ("Answer: A\nLet me correct that.\nAnswer: B", "B"),
        ("The field gives \\boxed{x}.\n**Answer: D**", "D"),
        ("So it is \\boxed{\\text{(C)}}.", "C"),
        ("Water boils at 100 degrees.\n\n**B) 100**", "B"),
        *(
            (form, None)
            for form in ("Don't know", "A dog is an animal, so none of them.", "A) Paris\nB) Rome", "", "E")
        ),
        ("The answer is a matter of taste.", None),
        ("The answer is not given.", None),
    ],
)
def test_a_choice_is_read_in_its_forms(text: str, letter: str | None) -> None:
    assert chosen(text, ("A", "B", "C", "D")) == letter


def test_length_counts_what_it_says(tmp_path: Path) -> None:
    words = {"<unk>": 0, "one": 1, "two": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    asked = Prompt(id="p", split="train", messages=())
    told: list[str] = []
    for unit in ({"unit": "characters"}, {"unit": "words"}, {"unit": "tokens", "tokenizer": str(tmp_path)}):
        check = ADAPTER.validate_python({"kind": "length", "most": 1, **unit})
        found = look(check, asked, Sample(prompt_id="p", text="one two"))
        told.append(f"{found.reason}: {found.evidence}")
    assert told == [
        "more than 1 characters: 7 characters",
        "more than 1 words: 2 words",
        "more than 1 tokens: 7 tokens",
    ]
    missing = {"kind": "length", "unit": "tokens", "tokenizer": str(tmp_path / "no-model")}
    with pytest.raises(InputError, match="no tokenizer at"):
        require(ADAPTER.validate_python(missing))


def test_grounded_reads_the_whole_conversation_and_words_without_blanks() -> None:
    def opinion(answer: str, *turns: str) -> str:
        messages = tuple(Message(role="assistant" if i % 2 else "user", content=t) for i, t in enumerate(turns))
        prompt = Prompt(id="p", split="train", messages=messages)
        return look(ADAPTER.validate_python({"kind": "grounded"}), prompt, Sample(prompt_id="p", text=answer)).opinion

    assert opinion('{"name": "Rosa Blum", "n": 12}', "I am Rosa Blum and want 12.", "When?", "On Friday.") == "passed"
    assert opinion('{"city": "北京", "n": 12}', "我叫张伟，住在北京市，要12个杯子") == "passed"
    assert opinion('{"city": "上海"}', "我叫张伟，住在北京市") == "failed"
    assert opinion('{"city": "東京"}', "私は東京に住んでいます") == "passed"
    assert opinion('{"city": "เชียงใหม่"}', "ฉันอยู่ที่เชียงใหม่ค่ะ") == "passed"
    assert opinion('{"pet": "art"}', "Bart") == "failed"


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
    said({"kind": "multiple_choice"}, "answer" + " " * 500_000 + "answer" * 50_000, reference="B")
    said({"kind": "json", "prose": True}, "[1, " * 100_000)
    said({"kind": "number"}, "1,234" * 100_000 + "-" * 100_000, reference="1")
    said({"kind": "grounded"}, '{"a": "' + "(" * 100_000 + '"}')
    assert time.monotonic() - start < 2


def test_what_is_read_out_of_an_answer() -> None:
    assert extracted(r"\\boxed\{(.*?)\}", r"\boxed{1} then \boxed{2}") == "2"
    assert numbers_in("2010-2015, −3, x-4, 1,250") == [2010, 2015, -3, 4, 1250]
    assert last_number("between 1 and -.5") == -0.5 and last_number("1e999") is None and last_number("x") is None
    assert code_in("```python\na\n```\nand\n```text\nb\n```") == "a\n"
    assert code_in("```\nb\n```") == "b\n" and code_in("print(1)") == "print(1)"
    assert json_in("```json\n[1]\n```\n```json\n[2]\n```") == ([2], "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "regex", "pattern": "("},
        {"kind": "exact", "extract": "["},
        {"kind": "function", "name": "os.system"},
        {"kind": "one_of", "choices": ()},
        {"kind": "multiple_choice", "choices": ("A",)},
        {"kind": "length", "unit": "tokens"},
        {"kind": "magic"},
    ],
)
def test_a_check_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
