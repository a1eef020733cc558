"""What crosses a stage border. Frozen, plain, and never torch.

prompt (what is asked) -> sample (an answer) -> verdict (what the checks said) -> example (kept for training).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "test"]
Stage = Literal["generate", "verify", "rescue", "train", "evaluate", "report"]
Finish = Literal["stop", "length", "filtered", "refusal", "tool_calls", "unknown"]
Opinion = Literal["passed", "failed", "undecided"]
ToolCalls = tuple[Mapping[str, Any], ...]
"""What an assistant asks to be called, in OpenAI's form: id (where there is one), type, function {name, arguments}, the
arguments as JSON text."""
Tools = tuple[Mapping[str, Any], ...]
"""Definitions of functions that may be called, in OpenAI's form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn, in the Hugging Face `messages` convention. `name` is of who speaks or of the tool that answers,
    `tool_call_id` of the call that a tool answers."""

    role: Role
    content: str
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: ToolCalls = ()
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The message as servers and Parquet expect it: absent fields are left out."""
        turn = {
            "role": self.role,
            "content": self.content,
            "reasoning_content": self.reasoning_content,
            "name": self.name,
            "tool_calls": [dict(call) for call in self.tool_calls] or None,
            "tool_call_id": self.tool_call_id,
        }
        return {name: value for name, value in turn.items() if value is not None}

    @classmethod
    def from_dict(cls, turn: Mapping[str, Any]) -> Message:
        """The inverse of `as_dict`. Raises ValueError, KeyError, TypeError or AttributeError where this is no
        message, or one with a field that nobody would read."""
        if turn["role"] not in get_args(Role):
            raise ValueError(f"the role {turn['role']!r} is none of {', '.join(get_args(Role))}")
        texts = {name: turn.get(name) for name in ("content", "reasoning_content", "name", "tool_call_id")}
        for name, text in texts.items():
            if not (text is None or isinstance(text, str)):
                raise ValueError(f"its '{name}' is neither text nor null: {str(text)[:80]}")
        known = {"role", "tool_calls", *texts}
        for name, value in turn.items():
            if name not in known and value not in (None, "", [], {}, ()):
                raise ValueError(f"a message's field '{name}' is not known: {str(value)[:80]}")
        content = texts.pop("content") or ""
        return cls(role=turn["role"], content=content, tool_calls=as_tool_calls(turn.get("tool_calls") or ()), **texts)


def as_tool_calls(calls: Iterable[Mapping[str, Any]]) -> ToolCalls:
    """The calls of a message, whether their arguments are an object or its JSON text. Raises ValueError, KeyError,
    TypeError or AttributeError where one is no call of a function."""
    return tuple(map(_tool_call, calls))


def _tool_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    name, arguments = function["name"], function.get("arguments")
    if not isinstance(name, str):
        raise ValueError(f"a tool call without a name: {str(call)[:80]}")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    known = {} if call.get("id") is None else {"id": str(call["id"])}
    return {**known, "type": "function", "function": {"name": name, "arguments": text}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked. `reference` (of texts also unit tests or a task's record, as JSON) and `grade`
    are human knowledge and never reach training. `any_of`: the reference is a list of references."""

    id: str
    split: Split
    messages: tuple[Message, ...]
    tools: Tools = ()
    reference: str | None = None
    any_of: bool = False
    grade: float | None = None

    @property
    def text(self) -> str:
        """The last user turn: what a person would call "the prompt"."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def conversation(self) -> str:
        """All that is said before the answer, whoever says it."""
        return "\n".join(m.content for m in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer. With choices, `choice_logprobs` holds ln p(choice | prompt), one value per choice, as the model said
    it (full-vocabulary softmax, so the values need not sum to one); `calibrated_logprobs` sum to one and are in no
    ledger. `cut_off`: the answer, or the reasoning before it, did not come to its end. `rescue`: the number of the
    rescue try that brought it; 0 for the answers that every prompt gets."""

    prompt_id: str
    text: str
    index: int = 0
    choice_logprobs: tuple[float, ...] | None = None
    calibrated_logprobs: tuple[float, ...] | None = None
    reasoning: str | None = None
    tool_calls: ToolCalls = ()
    finish: Finish = "stop"
    cut_off: bool = False
    rescue: int = 0

    @property
    def empty(self) -> bool:
        """Whether it says nothing and calls nothing."""
        return not self.text.strip() and not self.tool_calls and self.choice_logprobs is None

    @property
    def message(self) -> Message:
        """The answer as the assistant's turn."""
        return Message(
            role="assistant", content=self.text, reasoning_content=self.reasoning, tool_calls=self.tool_calls
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check said of a sample, why, and what it saw. `check` is its name and version; `score` from 0 to 1 where
    the check grades. Undecided: the check could not say, which is not the sample's fault."""

    opinion: Opinion
    reason: str = ""
    evidence: str = ""
    score: float | None = None
    check: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What all checks said of a sample. `reason` is what spoke against keeping it. In a test `kept` means right."""

    prompt_id: str
    index: int
    kept: bool
    reason: str
    evidence: str = ""
    findings: tuple[Finding, ...] = ()
    score: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A sample selected for training: its answer is the last of `messages`, `weight` is how much it counts, and
    `choice_logprobs` is the teacher's calibrated distribution where there are choices. `licence`: what all that it is
    made of allows."""

    messages: tuple[Message, ...]
    weight: float = 1.0
    prompt_id: str = ""
    split: Split = "train"
    tools: Tools = ()
    choice_logprobs: tuple[float, ...] | None = None
    labelled_by: Literal["teacher", "human"] = "teacher"
    teacher: str = ""
    domain: str | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A measured value, the number of prompts behind it, and its 95 % interval where one makes sense."""

    value: float
    n: int
    ci95: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, object]:
        return {"value": self.value, "n": self.n, "ci95": list(self.ci95) if self.ci95 else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a stage, for whoever watches: the terminal, a log, a test. `facts` are the note's numbers."""

    stage: Stage
    what: str
    done: int
    total: int
    note: str = ""
    facts: Mapping[str, float] = field(default_factory=dict[str, float])


Watch = Callable[[Progress], None]
"""Receives progress; must not raise."""


def unwatched(_: Progress) -> None:
    """The Watch of library users who did not ask for one."""
