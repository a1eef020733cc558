"""Chat templates that behave as the families' own do, conversations for them, and tokenizers of the two kinds that
there are: one of bytes, and one of pieces, which begins every text with a blank."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from potstill.records import Message, Tools

_HEADER = re.compile(r"^#== (\S+) \| (\S+) \| (\S+)(?: \| (.*))?\n", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """`end` closes the assistant's turn; None where the template writes nothing there that generation could stop at,
    and so teaches nothing. `refused` are the conversations (by their letters) of which it teaches nothing."""

    name: str
    source: str
    end: str | None
    refused: str
    pieces: bool
    tokens: dict[str, str]


def families() -> list[Family]:
    text = (Path(__file__).parent / "families.jinja").read_text(encoding="utf-8")
    _, *parts = _HEADER.split(text)
    found: list[Family] = []
    for name, end, refused, flags, source in zip(*(parts[i::5] for i in range(5)), strict=True):
        said = (flags or "").split()
        eos = next((flag.removeprefix("eos=") for flag in said if flag.startswith("eos=")), None)
        eos = eos or (end if end != "-" else "<|endoftext|>")
        tokens = {"bos_token": "<s>", "eos_token": eos, "unk_token": "<unk>"}
        ends = None if end == "-" else end
        found.append(Family(name, source.removesuffix("\n"), ends, refused.strip("-"), "pieces" in said, tokens))
    return found


def _m(role: Any, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)


def _call(**arguments: Any) -> Any:
    function = {"name": "weather", "arguments": json.dumps(arguments, ensure_ascii=False)}
    return ({"id": "call12345", "type": "function", "function": function},)


_PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "a <town> & more"}}}
TOOLS: Tools = ({"type": "function", "function": {"name": "weather", "description": "Say.", "parameters": _PLACE}},)
_ASKS, _SYSTEM = _m("user", "How warm is it in Zürich?"), _m("system", "Answer briefly.")
_CALLS = _m("assistant", "", tool_calls=_call(place="Zürich", days=[1, 2]))
_RESULT = _m("tool", '{"celsius": 21}', name="weather", tool_call_id="call12345")

CONVERSATIONS: dict[str, tuple[list[Message], Tools]] = {
    # plain, system, empty system, more turns, unicode, blanks, tools, call, result, documents, reasoning (k), and
    # reasoning before (h)
    "p": ([_ASKS, _m("assistant", "21 degrees.")], ()),
    "s": ([_SYSTEM, _ASKS, _m("assistant", "21")], ()),
    "e": ([_m("system", ""), _ASKS, _m("assistant", "It is warm.")], ()),
    "m": ([_SYSTEM, _ASKS, _m("assistant", "21"), _m("user", "And in Bern?"), _m("assistant", "19")], ()),
    "u": (
        [_m("user", "日本語 👩‍👩‍👧 {{ x }} <b>\n\n```py\nx\n```"), _m("assistant", "漢字 é\n\n* a\n* b {% if %}")],
        (),
    ),
    "b": ([_m("user", " padded \n"), _m("assistant", "  indented\nanswer \n")], ()),
    "t": ([_ASKS, _m("assistant", "I need no tool.")], TOOLS),
    "c": ([_SYSTEM, _ASKS, _CALLS], TOOLS),
    "r": ([_ASKS, _CALLS, _RESULT, _m("assistant", "21 degrees.")], TOOLS),
    "d": ([_m("user", '# Document 1\n"Zürich"\n\n# Document 2\n21 °C\n\nHow warm?'), _m("assistant", "21 [2]")], ()),
    "k": ([_ASKS, _m("assistant", "Warm.", reasoning_content="21 degrees\nis warm")], ()),
    "h": (
        [_ASKS, _m("assistant", "Warm.", reasoning_content="21 is warm"), _m("user", "Sure?"), _m("assistant", "Yes.")],
        (),
    ),
}

_CORPUS = [message.content for talk, _ in CONVERSATIONS.values() for message in talk] * 2


def bytes_tokenizer(special: list[str]) -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(_CORPUS, trainer)
    return found


def pieces_tokenizer(special: list[str]) -> Tokenizer:
    """As Llama 2's: every text begins with a blank, also after a control token."""
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    found = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    found.pre_tokenizer = pre_tokenizers.Sequence(words)
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>", *data], show_progress=False)
    found.train_from_iterator(_CORPUS, trainer)
    stated = json.loads(found.to_str())
    stated["added_tokens"], stated["pre_tokenizer"] = [], None  # the bytes stand for what no piece spells
    found = Tokenizer.from_str(json.dumps(stated))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    found.decoder = decoders.Sequence(spaces)
    found.add_special_tokens(special)
    return found
