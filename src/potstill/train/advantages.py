"""What the student's own answers are worth, told before the step: towards the teacher (every token's log-ratio) and by
the checks. Baselines are means over the whole step, so they do not change with the passes it is split into.

Dimension key: N tokens of all own answers, S answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.engines.local import plan_batches
from potstill.engines.reply import Spoken, split_inline
from potstill.errors import InputError
from potstill.losses import Hidden
from potstill.losses.estimators import leave_one_out, reward_to_go, sampled_logp, sequence_sums
from potstill.recipe.methods import LogitKd, PolicyGradient, Sft
from potstill.recipe.on_policy import OnPolicy
from potstill.recipe.train import TrainSettings
from potstill.records import Sample
from potstill.text.tokens import Codec
from potstill.train.batch import Own, Row
from potstill.train.served import ServedTeacher
from potstill.train.teaching import Teach
from potstill.verify.rewards import Reward

Verdicts = Callable[[Sequence[Row]], Sequence[float | None]]
"""The same of own answers."""


def judged(
    train: TrainSettings, how: OnPolicy, teach: Teach, verdicts: Verdicts | None
) -> tuple[Advantages | None, Teach | None]:
    """Who says what the student's own answers of a step are worth, if anybody, and who scores them while the step is
    taken: in a policy gradient the teacher has done so before. Raises InputError for a reward that nobody gives."""
    if isinstance(train.method, Sft) or not (how.reward or isinstance(train.method, PolicyGradient)):
        return None, teach
    if how.reward is not None and verdicts is None:
        raise InputError(
            "train.on_policy.reward is set, but nobody said what the checks say of an answer",
            way_out="hand down `rewarding`, as pipeline.Run.train does",
        )
    weight = 0.0 if how.reward is None else how.reward.weight
    advantages = Advantages(train.method, how.samples, weight, teach, verdicts, train.pass_tokens)
    return advantages, None if isinstance(train.method, PolicyGradient) else teach


def verdicts_by(reward: Reward, codec: Codec) -> Verdicts:
    """What the reward says of own answers as its checks read them."""
    spoken = Spoken(codec)
    return lambda rows: reward([_sample(row, spoken) for row in rows])


def _sample(row: Row, spoken: Spoken) -> Sample:
    """An own answer as a check reads it: without the token that ends it, its reasoning apart."""
    cut_off = _own(row).cut_off
    ids = row.target if cut_off else row.target[:-1]
    reasoning, text, closed = split_inline(spoken(row.prefix, ids))
    finish = "length" if cut_off else "stop"
    return Sample(prompt_id=row.prompt_id, text=text, reasoning=reasoning, finish=finish, cut_off=cut_off or not closed)


@dataclass(frozen=True, slots=True)
class Advantages:
    """Whom to ask: the teacher in a policy gradient, the checks where the recipe rewards what they pass (`weight`). An
    answer's baseline are those to the same prompt where there are several `samples`, else all others of the step."""

    method: LogitKd | PolicyGradient
    samples: int
    weight: float
    teach: Teach
    verdicts: Verdicts | None
    pass_tokens: int

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of a step, own answers with what each of their tokens is worth."""
        if isinstance(self.method, PolicyGradient) and self.method.mean == "answers":
            rows = [replace(row, weight=row.weight / len(row.target)) for row in rows]
        mine = [(at, row, row.own) for at, row in enumerate(rows) if row.own is not None]
        if not mine:
            return list(rows)
        answers, owns = [row for _, row, _ in mine], [own for _, _, own in mine]
        sizes = [len(own.logp) for own in owns]
        answer_N = torch.arange(len(owns)).repeat_interleave(torch.tensor(sizes))
        group_S = torch.tensor([own.prompt if self.samples > 1 else 0 for own in owns])
        ratio_N, gain_N = torch.zeros(0), torch.zeros(len(answer_N))
        if isinstance(self.method, PolicyGradient):
            ratio_N = _log_ratios(self.teach, answers, self.pass_tokens)
            gain_N = _towards_teacher(self.method, ratio_N, answer_N, group_S)
        said: Sequence[float | None] = [None] * len(owns)
        if self.verdicts is not None:
            said = self.verdicts(answers)
            gain_N = gain_N + self.weight * _by_verdict(said, group_S)[answer_N]
        found, ratios = list(rows), ratio_N.split(sizes if len(ratio_N) else [0] * len(sizes))
        for (at, row, own), gain, ratio, verdict in zip(mine, gain_N.split(sizes), ratios, said, strict=True):
            judged = replace(own, advantage=tuple(gain.tolist()), log_ratio=tuple(ratio.tolist()), reward=verdict)
            found[at] = replace(row, own=judged)
        return found


def _towards_teacher(method: PolicyGradient, ratio_N: Tensor, answer_N: Tensor, group_S: Tensor) -> Tensor:
    """The advantage of every token, shape (N,)."""
    if method.level == "token":
        return reward_to_go(ratio_N, sequence_N=answer_N, discount=method.discount)
    return_S = sequence_sums(ratio_N, sequence_N=answer_N, sequences=len(group_S))
    return leave_one_out(return_S, group_S=group_S, groups=int(group_S.max()) + 1)[answer_N]


def _by_verdict(said: Sequence[float | None], group_S: Tensor) -> Tensor:
    """The advantage of every answer, shape (S,). One that no check could judge has none and is nobody's baseline."""
    known_S = torch.tensor([verdict is not None for verdict in said])
    found_S = torch.zeros(len(said))
    if known_S.any():
        judged = torch.tensor([verdict for verdict in said if verdict is not None])
        found_S[known_S] = leave_one_out(judged, group_S=group_S[known_S], groups=int(group_S.max()) + 1)
    return found_S


def _log_ratios(teach: Teach, rows: Sequence[Row], pass_tokens: int) -> Tensor:
    """ln p - ln q of every token of own answers, shape (N,), q as it was written. 0 where the teacher ends its turns
    with another token and so says nothing of this one."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in plan_batches([len(row.teacher_prefix) + len(row.target) for row in rows], pass_tokens):
        some = [rows[i] for i in batch]
        logp_N = _target_logp(teach, some)
        for i, row, part_N in zip(batch, some, logp_N.split([row.scored for row in some]), strict=True):
            found[i] = torch.zeros(len(row.target))
            found[i][: row.scored] = part_N - torch.tensor(_own(row).logp[: row.scored])
    return torch.cat(found)


def _target_logp(teach: Teach, rows: Sequence[Row]) -> Tensor:
    """ln p of the scored targets, shape (N,)."""
    if isinstance(teach, ServedTeacher):
        return teach.token_logp(rows)
    signal = teach(rows)
    assert isinstance(signal, Hidden), "'signal' is live on policy"
    token_N = torch.tensor([token for row in rows for token in row.target[: row.scored]], dtype=torch.long)
    return sampled_logp(signal, token_N.to(signal.hidden_ND.device)).cpu()


def _own(row: Row) -> Own:
    assert row.own is not None
    return row.own
