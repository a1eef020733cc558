"""How far a student that learnt on-policy is from its teacher on text of its own, on prompts held back from training.

Per answer the sum over its tokens of KL(student || teacher) for the next token: on average over answers drawn from the
student it is the KL between distributions over whole answers (the chain rule), at less noise than ln q - ln p of the
drawn tokens. Answers are drawn at temperature 1, whatever the recipe trains with; one that is cut off counts as far as
it goes.

Dimension key: N scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout, Rollouts
from potstill.models.forward import hidden_rows
from potstill.recipe.on_policy import OnPolicy
from potstill.text.tokens import Codec
from potstill.train.batch import Row, Whole, collate
from potstill.train.methods import compared
from potstill.train.rollout_buffer import own_row
from potstill.train.stopped import Spell
from potstill.train.teaching import LiveTeacher

_ANSWERS, _MOST_PER_PROMPT = 64, 8
_POSITIONS = 64
_SAMPLES, _SAMPLE_TOKENS = 6, 256
_ROWS = 8  # answers scored at once
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Told:
    """One answer, what is known of each of its scored tokens: KL(student || teacher), ln q and ln p."""

    answer: Rollout
    kl_N: list[float]
    student_N: list[float]
    teacher_N: list[float]


def own_text(
    model: PreTrainedModel, rows: Sequence[Row], *, teacher: LiveTeacher, how: OnPolicy, codec: Codec, seed: int
) -> dict[str, Any]:
    """Let the student answer the rows' prompts; returns what the teacher says of it, for `rollouts.json`."""
    asked = list({row.prefix: row for row in rows}.values())[:_ANSWERS]
    longest = max(len(row.prefix) for row in asked)
    ends = [codec.end_of_turn("x")]
    capacity = longest + how.max_tokens
    rollouts = Rollouts(model, slots=how.slots, capacity_tokens=capacity, end_ids=ends, vocabulary=codec.vocabulary)
    written = rollouts.roll_out(
        [row.prefix for row in asked],
        n=min(_MOST_PER_PROMPT, _ANSWERS // len(asked)),
        sampling=Sampling(seed=seed),
        max_new_tokens=how.max_tokens,
    )
    told = [
        one for at in range(0, len(written), _ROWS) for one in _told(model, asked, written[at : at + _ROWS], teacher)
    ]
    facts = {"prompts": len(asked), "answers": len(told), "max_tokens": how.max_tokens, **summary(told, seed=seed)}
    first = [one for one in told if one.answer.index == 0]
    shown = first[:: -(-len(first) // _SAMPLES)]
    samples = [_sample(one, codec.text(asked[one.answer.prompt].prefix), codec.text) for one in shown]
    return {**facts, "samples": samples}


def summary(told: Sequence[Told], *, seed: int) -> dict[str, Any]:
    """The divergence of whole answers, with its interval over prompts, and the mean at every position."""
    prompts = sorted({one.answer.prompt for one in told})
    mean_P = np.array([np.mean([sum(one.kl_N) for one in told if one.answer.prompt == prompt]) for prompt in prompts])
    draws = np.random.default_rng(seed).integers(len(mean_P), size=(_RESAMPLES, len(mean_P)))
    ends = np.quantile(mean_P[draws].mean(1), (0.025, 0.975)).tolist() if len(mean_P) > 1 else None
    tokens = [len(one.kl_N) for one in told]
    at = [[one.kl_N[i] for one in told if i < len(one.kl_N)] for i in range(min(_POSITIONS, max(tokens)))]
    return {
        "reverse_kl": {"value": float(mean_P.mean()), "n": len(mean_P), "ci95": ends},
        "reverse_kl_per_token": sum(sum(one.kl_N) for one in told) / max(1, sum(tokens)),
        "ended": sum(one.answer.finish == "stop" for one in told),
        "mean_length": sum(len(one.answer.ids) for one in told) / len(told),
        "by_position": [{"kl": sum(some) / len(some), "n": len(some)} for some in at],
    }


@torch.inference_mode()
def _told(model: PreTrainedModel, asked: Sequence[Row], written: Sequence[Rollout], teacher: LiveTeacher) -> list[Told]:
    rows = [own_row(asked[one.prompt], one, prompt=one.prompt) for one in written]
    batch = collate(rows, (), whole=Whole.of(rows), device=model.device)
    if not batch.scored_N.any():  # nothing but ends of turns that the teacher does not know
        return [Told(one, [], [], []) for one in written]
    hidden_ND = hidden_rows(model, batch.documents, batch.at_R)[batch.scored_N]
    account = compared(model, hidden_ND, batch.target_N[batch.scored_N], teacher=teacher(rows))
    assert account.observed.target_logp_N is not None, "own answers have a live teacher"
    columns = (account.divergence_N, -account.cross_entropy_N, account.observed.target_logp_N)
    parts = zip(*(column_N.split([row.scored for row in rows]) for column_N in columns), strict=True)
    return [Told(one, *(part_N.tolist() for part_N in three)) for one, three in zip(written, parts, strict=True)]


def _sample(one: Told, prompt: str, spell: Spell) -> dict[str, Any]:
    texts = pieces(one.answer.ids[: len(one.kl_N)][:_SAMPLE_TOKENS], spell)
    found = zip(texts, one.student_N, one.teacher_N, strict=False)
    tokens = [[text, round(student, 4), round(teacher, 4)] for text, student, teacher in found]
    return {"prompt": prompt, "finish": one.answer.finish, "length": len(one.answer.ids), "tokens": tokens}


def pieces(ids: Sequence[int], spell: Spell) -> list[str]:
    """What each token adds to the text; one that ends inside a character adds nothing, the next one all of it."""
    found, said = list[str](), ""
    for end in range(1, len(ids) + 1):
        now = spell(tuple(ids[:end]))
        whole = end == len(ids) or not now.endswith("\ufffd")
        found.append(now[len(said) :] if whole else "")
        said = now if whole else said
    return found
