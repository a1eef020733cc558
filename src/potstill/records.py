"""What crosses a stage border. Frozen, plain, and never torch.

prompt (what is asked) -> sample (an answer) -> verdict (what a check said) -> example (kept for training).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "test"]
Stage = Literal["prompts", "generate", "verify", "train", "evaluate", "report"]
Finish = Literal["stop", "length", "filtered", "tool_calls", "unknown"]
Opinion = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn, in the Hugging Face `messages` convention."""

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[Mapping[str, object], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The message as templates and Parquet expect it: absent fields are left out."""
        turn: dict[str, object] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            turn["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            turn["tool_calls"] = [dict(call) for call in self.tool_calls]
        return turn

    @classmethod
    def from_dict(cls, turn: Mapping[str, Any]) -> Message:
        """The inverse of `as_dict`. Raises KeyError, TypeError or AttributeError where this is no message."""
        return cls(
            role=turn["role"],
            content=turn.get("content") or "",
            reasoning_content=turn.get("reasoning_content"),
            tool_calls=tuple(turn.get("tool_calls") or ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked. `reference` (where answers are free text also unit tests or a task's record, as JSON) and `grade`
    are human knowledge and never reach training."""

    id: str
    split: Split
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()
    reference: str | None = None
    grade: float | None = None

    @property
    def text(self) -> str:
        """The last user turn: what a person would call "the prompt"."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer. With choices, `choice_logp` holds ln p(choice | prompt), one value a choice, as the model said it
    (full-vocabulary softmax, so the values need not sum to one). `cut_off`: the answer, or the reasoning before it,
    did not come to its end. `rescue`: the number of the rescue try that brought it; 0 for the answers that every prompt
    gets."""

    prompt_id: str
    text: str
    index: int = 0
    choice_logp: tuple[float, ...] | None = None
    reasoning: str | None = None
    finish: Finish = "stop"
    cut_off: bool = False
    rescue: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the checks said of a sample: the first that failed, or "accepted". `choice_p` is calibrated."""

    prompt_id: str
    accepted: bool
    reason: str
    answer: str
    choice_p: tuple[float, ...]
    index: int = 0

    @property
    def confidence(self) -> float:
        return max(self.choice_p)


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
class Example:
    """A sample selected for training, with where it came from and what its licence allows."""

    prompt_id: str
    messages: tuple[Message, ...]
    answer: str
    choice_p: tuple[float, ...]
    teacher: str
    licence: str
    labelled_by: Literal["teacher", "human"] = "teacher"


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
