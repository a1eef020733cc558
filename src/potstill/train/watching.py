"""What a training step tells whoever watches: how fast it is, how near to the machine's peak, how much memory, how long
yet. None of it is in metrics.jsonl, which is the same to the byte for a run that was killed and resumed.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.models.forward import decoder_layers
from potstill.models.load import compute_dtype
from potstill.records import Progress
from potstill.train.batch import Learnable
from potstill.train.best import Chosen

_SHOWN = ("loss", "kd", "ce", "agreement", "entropy")
_RECENT = 20  # steps that speeds are means of
_TRYING = 0.2  # seconds for the peak
_EDGE = {"cpu": 1024, "cuda": 4096}  # of the matrices that are multiplied for it


class Gauge:
    """Of one model in training that has read `tokens` so far."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        self._device = next(model.parameters()).device
        self._counted = None
        if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
            self._counted = (*operations(model), peak(self._device.type))
        self._operations = 0
        self._recent = deque([(time.perf_counter(), tokens, 0)], maxlen=_RECENT + 1)

    def read(
        self, tokens: int, rows: Sequence[Learnable], logged: Mapping[str, float], *, steps_left: int
    ) -> dict[str, float]:
        """After a step on `rows`, `tokens` read in all. `share_of_peak` counts the student's own arithmetic alone: what
        a teacher, rollouts, validations and checkpoints take lowers it. It is told of models that write: what another
        module computes with a weight is not known."""
        per_token, a_target, most = self._counted or (0, 0, math.inf)
        self._operations += (tokens - self._recent[-1][1]) * per_token + sum(row.targets for row in rows) * a_target
        self._recent.append((time.perf_counter(), tokens, self._operations))
        (then, had, did), (now, has, done) = self._recent[0], self._recent[-1]
        seconds = max(now - then, 1e-9)
        of_peak = {} if self._counted is None else {"share_of_peak": (done - did) / seconds / most}
        return {
            **{name: logged[name] for name in _SHOWN if name in logged},
            **{name: value for name, value in logged.items() if name.startswith("validation_")},
            "tokens_per_second": (has - had) / seconds,
            **of_peak,
            "peak_memory_bytes": float(_peak_memory(self._device)),
            "seconds_left": steps_left * seconds / (len(self._recent) - 1),
        }


def progress(
    arm: str, step: int, total: int, facts: Mapping[str, float], chosen: Chosen | None, *, says: Sequence[str] = ()
) -> Progress:
    """Of a step; `chosen`: of the last one; what guards `say` of it."""
    note = "; ".join([f"loss {facts['loss']:.3f}", *says])
    if chosen is not None:
        stopped = f"stopped early after {step:,} of {total:,} steps, " if chosen.stopped_early else ""
        note, total = f"{stopped}weights of step {chosen.step:,}, {chosen.metric} {chosen.score:.4g}", step
        facts = {**facts, "seconds_left": 0.0}
    return Progress(stage="train", what=arm, done=step, total=total, note=note, facts=facts)


@cache
def peak(kind: str) -> float:
    """Operations per second of a bare square matrix product in the arithmetic that training uses: the best of a fifth
    of a second of trying, once per process."""
    one = torch.ones((_EDGE.get(kind, 1024),) * 2, dtype=compute_dtype(), device=kind)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < _TRYING:
        begin = time.perf_counter()
        torch.mm(one, one)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * len(one) ** 3 / best


def operations(model: PreTrainedModel) -> tuple[int, int]:
    """Of a step: for each token that is read, and for each that bears loss. 6 per weight that is trained (2 forward, 2
    for each of the gradients), 4 a frozen one behind a trained one, 2 a frozen one before all of them. The last
    feed-forward block and the head see the tokens that bear loss alone. Attention to other tokens is not counted, as
    usual (Chowdhery et al. 2022, PaLM, appendix B), nor are embeddings that are looked up."""
    head: Any = model.get_output_embeddings()
    last: Any = getattr(decoder_layers(model)[-1], "mlp", None)
    at_the_end = {id(parameter) for parameter in head.parameters()}
    late = at_the_end | {id(parameter) for parameter in (last.parameters() if last is not None else ())}
    looked_up = {id(parameter) for parameter in model.get_input_embeddings().parameters()} - late
    read = bears_loss = 0
    learns = False
    for parameter in model.parameters():
        learns = learns or parameter.requires_grad
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        behind = learns or id(parameter) in at_the_end  # tied to embeddings, the head comes first here
        made = parameter.numel() * (6 if parameter.requires_grad else 4 if behind else 2)
        read, bears_loss = (read, bears_loss + made) if id(parameter) in late else (read + made, bears_loss)
    return read, bears_loss


def _peak_memory(device: torch.device) -> int:
    """Bytes that tensors took at most on a GPU; else the process's largest resident set, loading included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
