"""What can go wrong in a run that still computes: a loss that runs away, and a student whose own answers degenerate.

Pure functions: what was measured in a step and what is remembered of earlier ones go in, what is remembered from there
on and the breaches come out. `docs/design/guards.md` has the sources and why every bound is where it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from potstill.recipe.guards import Action, LossGuard, RolloutGuards
from potstill.text.tokens import Ids
from potstill.train.batch import Row

Measured = Mapping[str, float]

_LEAST_FACTOR = 1 / 64  # a learning rate that has to be halved more often teaches nothing any more
_SETTLED = 5  # steps that make a start; before, nothing is judged
_RECENT = 0.2  # what the newest step weighs in a running mean
_LOSS_FLOOR = 0.1  # nats: where next to nothing is left to learn, five times nothing is nothing
_SURE = 0.1  # nats per token: below, a teacher is sure of every token, and so may be its student
_LOOP_TOKENS, _LONGEST_PERIOD = 8, 64

_SPOKEN = {
    "eos_rate": "the share of its own answers that end by themselves",
    "rollout_length": "the mean length of its own answers, in tokens,",
    "repetition": "the share of its own tokens in a loop that an answer ends in",
    "student_entropy": "its entropy on its own text, in nats per token,",
    "support_overlap": "the share of its own tokens that are likely ones to the teacher",
    "log_probability_gap": "the gap between writer and trainer, in nats per token,",
}


@dataclass(frozen=True, slots=True)
class Breach:
    """What was measured and the bound it broke, in one sentence, and what the recipe wants done about it."""

    name: str
    says: str
    action: Action


@dataclass(frozen=True, slots=True)
class Track:
    """One value's running mean, what it was after the first steps and at its highest since, and for how many steps in
    a row it has been out of bounds."""

    level: float
    steps: int
    start: float
    best: float
    out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """All that a decision depends on beside the step itself. It is in every checkpoint, so a resumed run decides alike.
    `factor` is what the learning rate was lowered to; it never rises again."""

    factor: float = 1.0
    on_policy: bool = False
    losses: tuple[float, ...] = ()
    high: int = 0
    tracks: Mapping[str, Track] = field(default_factory=dict[str, Track])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(kept: Mapping[str, Any]) -> Memory:
        tracks = {name: Track(**track) for name, track in kept["tracks"].items()}
        factor, on_policy, losses, high = (kept[name] for name in ("factor", "on_policy", "losses", "high"))
        return Memory(factor=factor, on_policy=on_policy, losses=tuple(losses), high=high, tracks=tracks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a training is guarded by. `kept_length`, which `own` reads: mean tokens of the answers that were kept."""

    loss: LossGuard | None
    own: RolloutGuards | None = None
    kept_length: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered from this step on, what is worth logging of it, and the bounds that were broken."""

    memory: Memory
    measured: dict[str, float]
    breaches: list[Breach]


def look(memory: Memory, own: Sequence[Row], logged: Measured, rules: Rules, *, warming_up: bool) -> Seen:
    """Judge a step by the answers that the student wrote in it, if any, and by what its passes logged."""
    measured: dict[str, float] = {**measure(own), **of_own_tokens(logged)} if own else {}
    breaches: list[Breach] = []
    if own and not memory.on_policy:  # another thing is learnt from here on: another loss is usual
        memory = replace(memory, on_policy=True, losses=(), high=0)
    if rules.loss is not None:
        memory, found = judge_loss(memory, logged["loss"], rules.loss, warming_up=warming_up)
        breaches += found
    if own and rules.own is not None:
        memory, found = judge_own(memory, measured, rules.own, kept_length=rules.kept_length)
        breaches += found
    return Seen(memory, measured, breaches)


def measure(own: Sequence[Row]) -> dict[str, float]:
    """What the student's own answers of a step tell by themselves."""
    tokens = [len(row.target) for row in own]
    ended = [row.own is not None and not row.own.cut_off for row in own]
    looping = sum(loop(row.target[:-1] if end else row.target) for row, end in zip(own, ended, strict=True))
    return {
        "rollout_length": sum(tokens) / len(own),
        "eos_rate": sum(ended) / len(own),
        "repetition": looping / sum(tokens),
    }


def of_own_tokens(sums: Measured) -> dict[str, float]:
    """Means over the student's own tokens, of the weighted sums that the passes of a step logged (`methods`)."""
    names = ("student_entropy", "teacher_entropy", "support_overlap", "log_probability_gap")
    share = sums.get("own_share", 0.0)
    return {name: sums[name] / share for name in names if share and name in sums}


def loop(ids: Ids) -> int:
    """Tokens of the loop that an answer ends in: a tail of at least 8 that repeats itself three times or more."""
    for period in range(1, min(_LONGEST_PERIOD, len(ids) // 3) + 1):
        same = 0
        while same + period < len(ids) and ids[-1 - same] == ids[-1 - same - period]:
            same += 1
        if same + period >= max(3 * period, _LOOP_TOKENS):
            return same + period
    return 0


def judge_loss(memory: Memory, loss: float, guard: LossGuard, *, warming_up: bool) -> tuple[Memory, list[Breach]]:
    """A loss out of bounds stays out of the median."""
    known = memory.losses
    bound = guard.times * max(_LOSS_FLOOR, statistics.median(map(abs, known))) if len(known) >= _SETTLED else None
    if bound is None or loss <= bound:
        return replace(memory, losses=(*known, loss)[-guard.window :], high=0), []
    high = memory.high + 1
    if warming_up or high < guard.patience:
        return replace(memory, high=high), []
    says = f"the loss is {loss:.4g}, above {bound:.4g} ({guard.times:g} times its running median)"
    return replace(memory, high=0), [Breach("loss", says, guard.action)]


def judge_own(
    memory: Memory, measured: Measured, guards: RolloutGuards, *, kept_length: float
) -> tuple[Memory, list[Breach]]:
    """The values of a step on the student's own answers against their bounds."""
    tracks = {name: _followed(memory.tracks.get(name), value) for name, value in measured.items()}
    breaches: list[Breach] = []
    allowed = bounds(guards, tracks, kept_length=kept_length)
    for name, track in list(tracks.items()):
        low, high = allowed.get(name, (-math.inf, math.inf))
        out = track.out + 1 if track.steps > _SETTLED and not low <= track.level <= high else 0
        if out >= guards.patience:
            beyond = f"below {low:.4g}" if track.level < low else f"above {high:.4g}"
            says = f"{_SPOKEN[name]} is {track.level:.4g}, {beyond} ({name}, a running mean)"
            breaches.append(Breach(name, says, guards.action))
            out = 0
        tracks[name] = replace(track, out=out)
    return replace(memory, tracks={**memory.tracks, **tracks}), breaches


def bounds(guards: RolloutGuards, tracks: Mapping[str, Track], *, kept_length: float) -> dict[str, tuple[float, float]]:
    """Lowest and highest allowed running mean of everything that is measured and guarded."""
    found: dict[str, tuple[float, float]] = {}
    for name, least in (("eos_rate", guards.eos_rate), ("support_overlap", guards.support_overlap)):
        if least is not None and name in tracks and tracks[name].best >= 2 * least:
            found[name] = (least, math.inf)
    for name, most in (("repetition", guards.repetition), ("log_probability_gap", guards.log_probability_gap)):
        if most is not None and name in tracks:
            found[name] = (0.0, most)
    if guards.rollout_length is not None and "rollout_length" in tracks:
        span = tracks["rollout_length"].start, kept_length
        found["rollout_length"] = min(span) / guards.rollout_length, max(span) * guards.rollout_length
    if guards.student_entropy is not None and "student_entropy" in tracks:
        teachers = [tracks["teacher_entropy"].level] if "teacher_entropy" in tracks else []
        usual = min([tracks["student_entropy"].start, *teachers])
        if usual >= _SURE:
            found["student_entropy"] = guards.student_entropy * usual, math.inf
    return found


def decided(memory: Memory, breaches: Sequence[Breach]) -> tuple[Memory, Breach | None]:
    """With a halved learning rate where a breach asks for it, and the breach that stops the run, if one does."""
    lower = next((breach for breach in breaches if breach.action == "lower"), None)
    if lower is not None:
        memory = replace(memory, factor=memory.factor / 2)
        if memory.factor < _LEAST_FACTOR:
            return memory, replace(lower, says=f"{lower.says}, and the learning rate was lowered to 1/64 already")
    return memory, next((breach for breach in breaches if breach.action == "stop"), None)


def _followed(track: Track | None, value: float) -> Track:
    """A plain mean over the first steps; later ones fade."""
    if track is None:
        return Track(value, 1, value, value)
    steps = track.steps + 1
    level = track.level + max(1 / steps, _RECENT) * (value - track.level)
    settled = steps > _SETTLED
    return Track(
        level, steps, track.start if settled else level, max(track.best, level) if settled else level, track.out
    )
