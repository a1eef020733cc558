"""Replies to canonical answers: every name that reasoning goes by, and every shape that usage comes in.

Reasoning is found in the message's fields (`reasoning_content`, `reasoning`, `thinking`, `reasoning_details`), in
content parts of type thinking or reasoning, or inline between tags at the start of the text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from potstill.engines.errors_said import error_in, failure_inside
from potstill.engines.sampler import Answer, Failure, Reading, Usage
from potstill.records import Finish, ToolCalls, as_tool_calls
from potstill.text.tokens import Codec, Ids
from potstill.text.whole import whole, whole_values

Json = Mapping[str, Any]

_FINISH: dict[str, Finish] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("content_filter", "refusal", "safety"), "filtered"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), "tool_calls"),
}
_BROKEN = ("error", "abort", "aborted", "cancelled")
_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|channel|>analysis<|message|>": "<|end|>",
}
_MARKS = (*_TAGS, *_TAGS.values(), "<|start|>assistant", "<|channel|>final<|message|>")
"""Where reasoning begins and ends. A tokenizer may have them, or pieces of them, as special tokens."""
_OPENING = 16  # tokens at the end of a prompt among which an opening tag of reasoning stands
_HARMONY = re.compile(r"<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|(?:return|end)\|>\s*$")


def read_openai(raw: bytes) -> Reading:
    """A chat's reply or a text's continuation, from whichever server. Raises Failure("unreadable")."""
    body = read_object(raw)
    usage = read_usage(body.get("usage"))
    try:
        choices = sorted(body["choices"], key=lambda choice: choice.get("index", 0))
        answers = tuple(_openai_answer(choice) for choice in choices if not _broke_off(choice))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Failure("unreadable", "no list of choices with messages") from None
    if answers:
        return Reading(answers, usage)
    if choices:
        raise failure_inside(choices[0].get("error") or "the answer broke off", usage=usage)
    raise Failure("unreadable", "an empty list of choices")


def read_anthropic(raw: bytes) -> Reading:
    """A reply in Anthropic's messages form. Raises Failure("unreadable")."""
    body = read_object(raw)
    if not isinstance(body.get("content"), list):
        raise Failure("unreadable", "no list of content blocks")
    text, reasoning = _parts(body["content"])
    answer = _answer(text, reasoning, str(body.get("stop_reason")))
    usage = body.get("usage")
    if not isinstance(usage, Mapping) or "output_tokens" not in usage:
        return Reading((answer,), None)
    cached = _count(usage, "cache_read_input_tokens")
    prompt = _count(usage, "input_tokens") + cached + _count(usage, "cache_creation_input_tokens")
    return Reading((answer,), Usage(prompt=prompt, completion=_count(usage, "output_tokens"), cached=cached))


def split_inline(text: str, tags: Mapping[str, str] = _TAGS) -> tuple[str | None, str, bool]:
    """(reasoning, answer, whether the reasoning was closed) of text that may think between `tags`.

    A closing tag alone counts too: some templates put the opening one into the prompt. Later tags are the answer's.
    """
    thoughts: list[str] = []
    rest = text
    while opened := next((tag for tag in tags if rest.lstrip().startswith(tag)), None):
        inside = rest.lstrip()[len(opened) :]
        thought, closed, rest = inside.partition(tags[opened])
        thoughts.append(thought.strip())
        if not closed:
            return "\n".join(thoughts), "", False
        rest = _HARMONY.sub("", rest) if opened.startswith("<|") else rest
    if not thoughts:
        for opening, closing in tags.items():
            before, closed, after = rest.partition(closing)
            if closed and closing != "<|end|>" and opening not in before:
                return before.strip(), after.lstrip(), True
        return None, text, True
    return "\n".join(thoughts), rest.lstrip(), True


class Spoken:
    """The text of an answer in tokens: without special tokens, but for those that open or close reasoning, and with the
    tag with which the template's generation prompt has opened it already; `split_inline` splits it there."""

    def __init__(self, codec: Codec) -> None:
        self._tokenizer = codec.tokenizer
        special = self._tokenizer.get_added_tokens_decoder().items()
        self._unspoken = {i for i, t in special if t.special and not any(t.content in mark for mark in _MARKS)}

    def __call__(self, prompt: Ids, answer: Ids) -> str:
        end = self._tokenizer.decode(list(prompt[-_OPENING:]), skip_special_tokens=False).rstrip()
        opened = next((tag for tag in _TAGS if end.endswith(tag)), "")
        spoken = [token for token in answer if token not in self._unspoken]
        return opened + self._tokenizer.decode(spoken, skip_special_tokens=False)


def read_object(raw: bytes) -> Json:
    """A reply's JSON. Raises Failure, also for an error that it says with status 200."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        start = raw.lstrip()[:80]
        events, page = start.startswith((b"data:", b"event:", b":")), start.startswith(b"<")
        what = (
            "a stream of events" if events else "of content type HTML, perhaps a log-in page" if page else "something"
        )
        raise Failure("unreadable", f"{what}, not JSON: {start.decode(errors='replace')}") from None
    if not isinstance(body, dict):
        raise Failure("unreadable", "not a JSON object")
    if error := error_in(cast(Json, body)):
        raise failure_inside(error, usage=read_usage(body.get("usage")))
    return cast(Json, body)


def _broke_off(choice: Json) -> bool:
    """Whether the server gave up in the middle of this answer."""
    return bool(choice.get("error")) or choice.get("finish_reason") in _BROKEN


def _openai_answer(choice: Json) -> Answer:
    message: Json = choice["message"] if "message" in choice else {"content": choice["text"]}
    content = message.get("content")
    text, reasoning = _parts(content) if isinstance(content, list) else (str(content or ""), None)
    for name in _FIELDS:
        if reasoning is None and message.get(name):
            reasoning = _reasoning(message[name])
    calls = as_tool_calls(whole_values(message.get("tool_calls") or ()))
    if not text and message.get("refusal"):
        refusal = _answer(str(message["refusal"]), reasoning, str(choice.get("finish_reason")))
        return replace(refusal, finish="refusal")
    return _answer(text, reasoning, str(choice.get("finish_reason")), tool_calls=calls)


def _answer(text: str, reasoning: str | None, finish_reason: str, *, tool_calls: ToolCalls = ()) -> Answer:
    closed = True
    if reasoning is None:
        reasoning, text, closed = split_inline(text)
    finish = _FINISH.get(finish_reason, "unknown")
    text, reasoning = whole(text), None if reasoning is None else whole(reasoning)
    cut_off = finish == "length" or not closed
    return Answer(text=text, reasoning=reasoning, finish=finish, cut_off=cut_off, tool_calls=tool_calls)


def _parts(content: Sequence[Any]) -> tuple[str, str | None]:
    """Content blocks: the text ones joined, the thinking ones joined."""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if not isinstance(part, Mapping):
            raise Failure("unreadable", "a content block that is no object")
        kind = part.get("type")
        if kind in ("thinking", "reasoning"):
            thoughts.append(_reasoning(part.get("thinking") or part.get("reasoning") or part.get("text") or ""))
        elif kind in ("text", "output_text"):
            texts.append(str(part.get("text") or ""))
    return "".join(texts), "\n".join(thoughts) if thoughts else None


def _reasoning(value: object) -> str:
    """A text, or a list of objects with their text under one of three names."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, Mapping)]
        return "\n".join(str(e.get("text") or e.get("summary") or e.get("thinking") or "") for e in entries)
    return str(value)


def read_usage(usage: object) -> Usage | None:
    """OpenAI's usage; None where the server did not say."""
    if not isinstance(usage, Mapping):
        return None
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
    if not (cached or {"prompt_tokens", "completion_tokens", "total_tokens"} & usage.keys()):
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    # Some servers leave hidden reasoning out of the completion but not out of the total, nor out of the bill.
    return Usage(
        prompt=prompt,
        completion=max(completion, _count(usage, "total_tokens") - prompt),
        cached=cached,
    )


def _count(where: object, name: str) -> int:
    value = where.get(name) if isinstance(where, Mapping) else None
    return math.ceil(value) if isinstance(value, int | float) and 0 < value < 1 << 53 else 0
