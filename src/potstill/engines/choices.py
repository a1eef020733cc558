"""A served teacher's distribution over the choices, read off log-probabilities in one of three ways.

`PromptLogprobs` scores every choice as a continuation, exactly. The other two see the first token of the answer only,
and of that the `TOP` likeliest: a token counts for the choice that it begins, whatever its surrounding blanks, and a
choice that no listed token begins gets the smallest listed probability, which is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from potstill.engines.chat import body_of
from potstill.engines.reply import Json, read_object, read_usage
from potstill.engines.sampler import Answer, Ask, Failure, Reading
from potstill.text.tokens import Codec, Ids

TOP = 20
"""As many as vLLM (--max-logprobs) and OpenAI's chat list."""

_VOTES = "ask for votes (task.probabilities: votes, generate.n: 8), or choose answers that begin differently"


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """vLLM's `prompt_logprobs` of the prompt followed by each choice, in token ids: one request holds them all.

    Positions read from a prefix cache can carry stale numbers, so a reply that used one is refused.
    """

    constant: Mapping[str, object]
    codec: Codec
    choices: tuple[str, ...]
    ids: tuple[Ids, ...]
    path: ClassVar[str] = "/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        assert ask.prompt is not None
        prefix = self.codec.tokenizer.encode(ask.prompt, add_special_tokens=False).ids
        prompts = [[*prefix, *choice] for choice in self.ids]
        asked = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        return body_of(self.constant, asked)

    def read(self, raw: bytes) -> Reading:
        reply = read_object(raw)
        if (usage := read_usage(reply.get("usage"))) and usage.cached:
            raise Failure(
                "unable",
                "it scored from its prefix cache, which can hold stale numbers",
                way_out="start the server with --no-enable-prefix-caching",
            )
        try:
            said = sorted(reply["choices"], key=lambda choice: choice["index"])
            scored = [choice.get("prompt_logprobs") for choice in said]
        except (KeyError, TypeError, AttributeError):
            raise Failure("unreadable", "no list of choices") from None
        try:
            logprobs = tuple(
                sum(float(entry[str(token)]["logprob"]) for entry, token in zip(one[-len(ids) :], ids, strict=True))
                for one, ids in zip(scored, self.ids, strict=True)
            )
        except (KeyError, TypeError, ValueError):
            raise Failure(
                "unable",
                "its reply has no prompt_logprobs of every choice",
                way_out="score with vLLM, or leave 'teacher.engine.tokenizer' out and read them off the first token",
            ) from None
        return _reading(self.choices, logprobs, reply)


@dataclass(frozen=True, slots=True)
class Completions:
    """The prompt in the model's own template, continued by one token."""

    constant: Mapping[str, object]
    choices: tuple[str, ...]
    path: ClassVar[str] = "/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        asked = {"prompt": ask.prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP, "seed": ask.seed}
        return body_of(self.constant, asked)

    def read(self, raw: bytes) -> Reading:
        return _off_first_token(raw, self.choices)


@dataclass(frozen=True, slots=True)
class TopLogprobs(Completions):
    """A chat reply of one token."""

    limit: str = "max_tokens"
    path: ClassVar[str] = "/chat/completions"

    def body(self, ask: Ask) -> dict[str, object]:
        asked = {"messages": [dict(message) for message in ask.messages], self.limit: 1, "temperature": 0}
        tools = {"tools": [dict(tool) for tool in ask.tools]} if ask.tools else {}
        listed = {"logprobs": True, "top_logprobs": TOP, "seed": ask.seed}
        return body_of(self.constant, {**asked, **tools, **listed})


def matched(top: Sequence[tuple[str, float]], choices: Sequence[str]) -> tuple[float, ...]:
    """ln p of every choice, from the likeliest first tokens. Raises Failure where they do not tell the choices apart,
    or say nothing of any."""
    begun: list[list[float]] = [[] for _ in choices]
    shared: list[float] = []
    for token, logprob in top:
        which = [i for i, choice in enumerate(choices) if token.strip() and choice.startswith(token.strip())]
        if len(which) == 1:
            begun[which[0]].append(logprob)
        elif which:
            shared.append(logprob)
    told = [logprob for some in begun for logprob in some]
    if shared and _mass(shared) >= _mass(told):
        raise Failure("unable", "the first token of the answer does not tell the choices apart", way_out=_VOTES)
    if not told:
        likeliest = ", ".join(repr(token) for token, _ in sorted(top, key=lambda one: -one[1])[:3]) or "none"
        raise Failure(
            "no choice",
            f"no choice is among the likeliest first tokens of the answer ({likeliest})",
            way_out="have the teacher answer with a choice alone (teacher.instructions, teacher.examples)",
        )
    least = min(logprob for _, logprob in top)
    return tuple(math.log(_mass(some)) if some else least for some in begun)


def _mass(logprobs: Sequence[float]) -> float:
    return math.fsum(map(math.exp, logprobs))


def _off_first_token(raw: bytes, choices: tuple[str, ...]) -> Reading:
    reply = read_object(raw)
    try:
        top = _top(reply)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise Failure("unreadable", "no list of choices with log-probabilities") from None
    if top is None:
        raise Failure("unable", "its reply lists no log-probabilities of the first token", way_out=_VOTES)
    total = _mass([min(logprob, 1.0) for _, logprob in top])
    if not total < 1.01:  # not a number too
        raise Failure(
            "unable", f"the probabilities of the first tokens that it lists sum to {total:.3g}", way_out=_VOTES
        )
    return _reading(choices, matched(top, choices), reply)


def _top(reply: Json) -> list[tuple[str, float]] | None:
    """The likeliest first tokens, in each of the shapes in use: llama.cpp's own; `content` of chats, and of llama.cpp's
    completions; the completions of vLLM and OpenAI. None where the server gave none."""
    if "completion_probabilities" in reply:
        content = reply["completion_probabilities"]
    else:
        said = reply["choices"][0].get("logprobs")
        if not said:
            return None
        content = said["content"] if "content" in said else [{"top_logprobs": first} for first in said["top_logprobs"]]
    listed = content[0]["top_logprobs"] if content else []
    pairs = listed.items() if isinstance(listed, dict) else [(entry["token"], entry["logprob"]) for entry in listed]
    # some servers put -9999 where JSON has no number for "impossible"
    return [(str(token), float(logprob)) for token, logprob in pairs if not float(logprob) < -9000]


def _reading(choices: tuple[str, ...], logprobs: tuple[float, ...], reply: Mapping[str, Any]) -> Reading:
    if not all(logprob < 0.01 for logprob in logprobs):
        raise Failure("unable", f"it says {max(logprobs):.3g} where a log-probability is at most 0", way_out=_VOTES)
    likeliest = choices[max(range(len(choices)), key=logprobs.__getitem__)]
    answer = Answer(text=likeliest, reasoning=None, finish="stop", cut_off=False, choice_logprobs=logprobs)
    return Reading((answer,), read_usage(reply.get("usage")))
