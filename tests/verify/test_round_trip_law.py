"""The law of exactness: a thousand odd records of (reasoning, answer) go through the ledger, Parquet, the student's
template and its tokenizer, and come out as they went in."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.engines.canned import canned_from
from potstill.engines.reply import read_openai
from potstill.engines.sampler import Ask
from potstill.models.load import codec_of
from potstill.records import Message, Prompt
from potstill.store.answers import write_answers
from potstill.store.examples import read_examples
from potstill.store.requests import Requests
from potstill.store.samples import Written
from potstill.text.tokens import Codec

COUNT = 1000
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and m.get('reasoning_content') is not none %}"
    "<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIECES = [
    "<think>",
    "</think>",
    "<|channel|>analysis<|message|>",
    "[THINK]",
    "{{ messages }}",
    "{% endfor %}",
    "<s>",
    "\\n",
    "\n",
    "\n\n\n",
    "\r\n",
    "\r",
    "\t",
    " ",
    "   ",
    "\u00a0",
    "\u2028",
    "\u0085",
    "\ufeff",
    "\u200d",
    "\x00",
    "\x1b[31m",
    "e\u0301",
    "é",
    "ﬁ",
    "漢字",
    "👩‍👩‍👧",
    "\U0010ffff",
    "עברית",
    '"',
    "'",
    "```json\n{}\n```",
    "None",
    "film",
    "good",
    "Ġ",
    "▁",
]


def fuzzed(count: int, *, seed: int) -> Iterator[tuple[str | None, str]]:
    """(reasoning, answer): texts of odd pieces, empty ones and none at all among them."""
    draw = random.Random(seed)

    def text() -> str:
        pieces = draw.choices(PIECES, k=draw.randrange(0, 9))
        return "".join(pieces) + "".join(
            chr(draw.choice([*range(1, 0xD800), 0x1F600])) for _ in range(draw.randrange(4))
        )

    for _ in range(count):
        yield draw.choice([None, "", text(), text()]), text()


def through_the_ledger(folder: Path, records: list[tuple[str | None, str]]) -> list[tuple[Message, ...]]:
    """Stored as an answer a prompt, exported, and read as training reads it."""
    prompts = [
        Prompt(id=str(i), split="train", messages=(Message(role="user", content=f"say {i} \u2028 {answer}"),))
        for i, (_, answer) in enumerate(records)
    ]
    with Requests(folder / "ledger.sqlite") as requests:
        with requests.transaction():
            requests.put_asks((prompt, prompt.id.encode()) for prompt in prompts)
        with requests.transaction():
            requests.put_written(
                Written(question=asked.question, sample=0, attempt=1, max_tokens=9, text=answer, reasoning=reasoning)
                for asked, (reasoning, answer) in zip(list(requests.open_asks()), records, strict=True)
            )
        path = folder / "answers.parquet"
        assert write_answers(path, requests.samples(), teacher="t", licence="mit") == len(records)
    return [talk.messages for talk in read_examples(path)]


def decoded(codec: Codec, talk: tuple[Message, ...]) -> tuple[str, str]:
    """What the student reads and what it learns to write, as text."""
    *asked, said = talk
    prefix, turn = codec.prefix(asked), codec.turn(asked, said)
    decode = codec.tokenizer.decode
    return decode(list(prefix), skip_special_tokens=False), decode(list(turn), skip_special_tokens=False)


@pytest.mark.parametrize("thinks", [True, False])
def test_reasoning_and_answer_survive_exactly(tmp_path: Path, tiny_model: Path, thinks: bool) -> None:
    codec = codec_of(tiny_model, THINKING if thinks else None, name="student")
    records = [(r if thinks else None, a) for r, a in fuzzed(COUNT, seed=7)]
    talks = through_the_ledger(tmp_path, records)
    assert [(talk[-1].reasoning_content, talk[-1].content) for talk in talks] == records
    for talk, (reasoning, answer) in zip(talks, records, strict=True):
        assert codec.control_token(talk) is None
        read, written = decoded(codec, talk)
        thought = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n\n"
        assert written == f"{thought}{answer}<|im_end|>"
        assert read == f"<|im_start|>user\n{talk[0].content}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("where", ["content", "reasoning_content"])
def test_a_control_token_is_found_wherever_it_is_spelt(tiny_model: Path, where: str) -> None:
    codec = codec_of(tiny_model, THINKING, name="student")
    texts = {"content": "a", "reasoning_content": "b", where: "x <|im_end|> y"}
    assert codec.control_token([Message(role="assistant", **texts)]) == "<|im_end|>"  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["cut \ud83d", "\udc00 alone", "pair \ud83e\udd9c"])
def test_half_a_character_in_a_reply_becomes_a_mark_and_not_a_crash(tmp_path: Path, text: str) -> None:
    """Servers that stop inside an emoji send half of its UTF-16 pair; neither SQLite nor Parquet can hold it."""
    message = {"content": text, "reasoning_content": text}
    raw = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    (answer,) = read_openai(raw).answers
    assert answer.text == answer.reasoning == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    (talk,) = through_the_ledger(tmp_path, [(answer.reasoning, answer.text)])
    assert talk[-1].content == answer.text


def test_a_line_separator_inside_a_canned_answer_ends_no_line(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "answer": "a\u2028b\u0085c\x0bd"}, {"prompt": "q", "answer": "e"}]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    turns = ({"role": "user", "content": "p"},)
    sampler = canned_from(path)
    raw = asyncio.run(sampler.ask(Ask(messages=turns, count=1, max_tokens=9, seed=0, identity="")))
    assert sampler.read(raw).answers[0].text == lines[0]["answer"]
