"""Floating-point operations of training and scoring, and what GPUs make of them.

6 N per token that is learnt from and 2 N per token that is scored (Kaplan et al. 2020), N without the embeddings, less
what frozen weights save; heads cost the rows that bear loss alone, and attention's own products what a token looks back
on: half of its document on average (`context`).
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.models.shapes import Shape
from potstill.sizing.memory import Learning

SHARE_OF_PEAK = 0.3
"""An assumption, not a measurement: what training reaches of a GPU's products."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """`gigabytes` are 10^9 bytes: what a card has beyond is left to CUDA and to the allocator's gaps. `teraflops` are
    dense bf16 products with fp32 sums, `fp32_teraflops` those of fp32 without tensor cores, from the data sheet."""

    name: str
    gigabytes: int
    teraflops: float
    fp32_teraflops: float

    @property
    def bytes(self) -> int:
        return self.gigabytes * 10**9

    def flops_per_second(self, *, half: int) -> float:
        return (self.teraflops if half == 2 else self.fp32_teraflops) * 1e12 * SHARE_OF_PEAK


GPUS = (
    Gpu("RTX 4090", 24, 165, 82.6),
    Gpu("L40S", 48, 362, 91.6),
    Gpu("H100", 80, 989, 67),
    Gpu("H200", 141, 989, 67),
)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def learning_flops(learning: Learning, *, read: int, learnt: int, context: float) -> float:
    """Of `read` tokens of which `learnt` bear loss: forward, gradients of what is between, gradients of what learns."""
    shape = learning.shape
    updated = 3 * learning.adapters
    if learning.lora is None:
        updated = (shape.layers - learning.frozen_layers) * shape.matrices_per_layer
    forward = shape.layers + (learning.reached if learning.checkpointed else 0)
    body = (forward + learning.reached) * shape.matrices_per_layer + updated
    looking = (forward + 2 * learning.reached) * _looking_back(shape, context)
    return 2 * (body + looking) * read + 2 * shape.embeddings * (2 + learning.head_learns) * learnt


def scoring_flops(teacher: Shape, *, read: int, scored: int, context: float) -> float:
    """Of a teacher that reads `read` tokens and says something about `scored` of them."""
    body = teacher.layers * (teacher.matrices_per_layer + _looking_back(teacher, context))
    return 2 * body * read + 2 * teacher.embeddings * scored


def _looking_back(shape: Shape, context: float) -> float:
    """Multiplications of a token and layer: its queries with all keys, then the values."""
    return 2 * shape.queries * context
