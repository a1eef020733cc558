"""Seventy templates as model families have them, and twelve conversations: rendered as by transformers, or refused by
both; and what is learnt of each is what the model would write after the generation prompt, to the token, or is refused
by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from families import CONVERSATIONS, Family, bytes_tokenizer, families, pieces_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from potstill.errors import InputError
from potstill.records import Message, Tools
from potstill.text.template import Template, day
from potstill.text.tokens import Codec

FAMILIES = families()


@cache
def tokenizer(pieces: bool) -> Tokenizer:
    """With the control tokens that the families of its kind write."""
    mine = [family for family in FAMILIES if family.pieces is pieces]
    text = "".join(family.source for family in mine)
    marks = set(re.findall(r"<\|[a-z_A-Z]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<SPECIAL_1\d>", text))
    ends = {end for family in mine for end in (family.end, *family.tokens.values()) if end}
    return (pieces_tokenizer if pieces else bytes_tokenizer)(sorted(ends | marks))


@cache
def transformers_tokenizer(pieces: bool) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer(pieces).to_str()))


class Then(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2024, 7, 26, tzinfo=UTC)


def theirs(family: Family, messages: list[Message], tools: Tools, *, ask: bool) -> str | None:
    """What transformers makes of it, None where the template refuses."""
    turns: list[dict[str, Any]] = [message.as_dict() for message in messages]
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        call["function"] = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
    how: dict[str, Any] = {"chat_template": family.source, "add_generation_prompt": ask, **family.tokens}
    try:
        written = transformers_tokenizer(family.pieces).apply_chat_template(
            turns, tools=list(tools) or None, tokenize=False, **how
        )
    except Exception:
        return None
    return str(written)


def ids_of(family: Family, text: str) -> tuple[int, ...]:
    return tuple(transformers_tokenizer(family.pieces)(text, add_special_tokens=False)["input_ids"])  # pyright: ignore


def test_the_sweep_is_as_wide_as_it_says() -> None:
    assert len({family.source for family in FAMILIES}) == len(FAMILIES) >= 60
    assert len(CONVERSATIONS) == 12


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chat_template_utils, "datetime", Then)
    with day(Then.now().date()):
        yield


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_template_renders_as_in_transformers(family: Family) -> None:
    template = Template(family.source, name="student", tokens=family.tokens)
    for talk, tools in CONVERSATIONS.values():
        for messages, ask in ((talk, False), (talk[:-1], True), (talk, True)):
            try:
                ours = template.render(messages, tools=tools, add_generation_prompt=ask)
            except InputError:
                ours = None
            assert ours == theirs(family, messages, tools, ask=ask)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_learnt_is_what_the_model_would_write(family: Family) -> None:
    codec = Codec(tokenizer(family.pieces), Template(family.source, name="student", tokens=family.tokens))
    if family.end is None:
        with pytest.raises(InputError, match="does not close the assistant's turn with a special token"):
            codec.end_of_turn("x")
        return
    assert codec.tokenizer.id_to_token(codec.end_of_turn("x")) == family.end
    refused = ""
    for letter, (talk, tools) in CONVERSATIONS.items():
        try:
            prefix, target = codec.example(talk[:-1], talk[-1], tools=tools)
        except InputError as why:
            assert re.match("the student template (does not|refuses)", why.problem)
            refused += letter
        else:
            require_exact(family, codec, talk, tools, prefix, target)
    assert refused == family.refused


def require_exact(
    family: Family, codec: Codec, talk: list[Message], tools: Tools, prefix: tuple[int, ...], target: tuple[int, ...]
) -> None:
    """The prefix is transformers' own; the target is all that its finished conversation has after that, up to the end
    of the turn. Where the finished conversation does not have the generation prompt, the target is the answer alone,
    after its reasoning where the prompt opens that."""
    end, said = codec.end_of_turn("x"), talk[-1]
    asked, finished = theirs(family, talk[:-1], tools, ask=True), theirs(family, talk, tools, ask=False)
    assert asked is not None and finished is not None and prefix == ids_of(family, asked)
    assert target[-1] == end and end not in target[:-1]
    if finished.startswith(asked):
        whole = ids_of(family, finished)
        if whole[: len(prefix)] == prefix:
            assert whole[: len(prefix) + len(target)] == (*prefix, *target)
        else:  # the two would grow together: no model that was asked can write that
            assert not family.pieces and finished.startswith(codec.text((*prefix, *target)))
        return
    thought = f"{said.reasoning_content or ''}\n</think>\n\n" if asked.endswith("<think>\n") else ""
    answer = re.escape(said.content.strip()) if not said.tool_calls else r"\[TOOL_CALLS\] ?\[.*\]"
    assert re.fullmatch(rf"{re.escape(thought)}\s*{answer}\s*{re.escape(str(family.end))}", codec.text(target))


@pytest.mark.parametrize(
    ("name", "prompt", "turn"),
    [
        ("llama-2", "<s> [INST] How warm is it in Zürich? [/INST]", " 21 degrees. </s>"),  # a blank before the end
        ("phi-3", "<|user|> \nHow warm is it in Zürich?<|end|> \n<|assistant|> \n", "21 degrees.<|end|>"),
        (
            "deepseek-r1-distill",
            "<s><｜User｜>How warm is it in Zürich?<｜Assistant｜><think>\n",
            "\n</think>\n\n21 degrees.",
        ),
        ("gpt-oss-harmony", "", "<|channel|>final<|message|>21 degrees.<|return|>"),
    ],
)
def test_some_of_them_by_hand(name: str, prompt: str, turn: str) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    codec = Codec(tokenizer(family.pieces), Template(family.source, name="student", tokens=family.tokens))
    talk, _ = CONVERSATIONS["p"]
    prefix, target = codec.example(talk[:-1], talk[-1])
    assert codec.text(prefix).startswith(prompt)
    assert codec.text((*prefix, *target)).removeprefix(codec.text(prefix)).startswith(turn)


def test_what_ends_a_turn_and_is_not_called_special_may_not_be_spelt_either() -> None:
    plain = Tokenizer.from_str(bytes_tokenizer([]).to_str())
    plain.add_tokens(["<|im_end|>"])
    (family,) = (family for family in FAMILIES if family.name == "chatml")
    codec = Codec(plain, Template(family.source, name="student"))
    assert codec.control_token([Message(role="user", content="a <|im_end|>")]) == "<|im_end|>"
    assert codec.control_token([Message(role="user", content="a")]) is None
