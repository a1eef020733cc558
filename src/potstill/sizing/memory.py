"""Bytes that training keeps on every GPU, counted from shapes as the loop, autograd and the losses allocate them.

Weights are fp32, so they are their own masters; AdamW keeps two moments. Forward and backward run in half precision
(`half`: 2 bytes a number) or in fp32 where the machine has none. With more GPUs than one, FSDP2 shards what lasts,
layer by layer, wherever that is less than a replica; activations, loss and own answers are each GPU's own.

Dimension key (of comments): T tokens of a pass, D width, F inner width, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from potstill.errors import InputError
from potstill.models.shapes import Shape
from potstill.recipe.student import Lora

_FP32 = 4
_MOMENTS = 8
LOSS_BYTES = 256 << 20
"""What the loss keeps of logits at once on a GPU (`losses.linear`)."""
_UNITS = 2  # layers gathered at once by FSDP2: the one in work and the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A student in training. `shape` has the layers that it has; `teacher` is in memory beside it, or None, with int8
    matrices where `teacher_int8` says so. `dense`: the loss sees a teacher's whole distribution. `slots` answers of at
    most `capacity` tokens are written at once, by the teacher too where it mixes in: with its prompts they have
    `teacher_capacity`. `checkpointed`: layers are computed once more in the backward pass."""

    shape: Shape
    pass_tokens: int
    frozen_embeddings: bool = True
    frozen_layers: int = 0
    lora: Lora | None = None
    averaged: bool = False
    checkpointed: bool = False
    dense: bool = False
    teacher: Shape | None = None
    teacher_int8: bool = False
    slots: int = 0
    capacity: int = 0
    teacher_capacity: int = 0

    @property
    def adapters(self) -> int:
        """Parameters that LoRA adds, those in frozen layers among them."""
        return self.shape.layers * self._adapters_per_layer

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        shape, layers = self.shape, self.shape.layers - self.frozen_layers
        outside = 0 if self.frozen_embeddings else shape.embeddings
        if self.lora is not None:
            return layers * self._adapters_per_layer + outside
        return layers * shape.per_layer + outside + shape.width + (0 if shape.tied else shape.embeddings)

    @property
    def head_learns(self) -> bool:
        return not self.frozen_embeddings if self.shape.tied else self.lora is None

    @property
    def reached(self) -> int:
        """Layers that gradients flow through: the frozen ones too, where embeddings below them learn."""
        return self.shape.layers - (self.frozen_layers if self.frozen_embeddings else 0)

    @property
    def _adapters_per_layer(self) -> int:
        if self.lora is None:
            return 0
        maps = self.shape.maps
        if strange := next((target for target in self.lora.targets or () if target not in maps), None):
            raise InputError(
                f"student.lora.targets names '{strange}', but the student's layers have no such linear map",
                way_out=f"choose from {', '.join(maps)}",
            )
        return sum(self.lora.rank * sum(maps[target]) for target in self.lora.targets or maps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU. `copies` are the weights in the arithmetic of the forward pass, `loss` is the head's part with
    its tiles or the room that the backward pass works in, whichever is more."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    copies: int
    activations: int
    loss: int
    teacher: int
    own_answers: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        return asdict(self)


def training_memory(learning: Learning, *, gpus: int = 1, half: int = 2) -> Memory:
    """Bytes on each of so many GPUs, replicated or sharded, whichever is less. `half`: bytes of a number in forward and
    backward. Raises InputError where LoRA's targets are none of the student's."""
    replica = _memory(learning, gpus=1, half=half)
    if gpus == 1:
        return replica
    return min(replica, _memory(learning, gpus=gpus, half=half), key=lambda memory: memory.total)


def scoring_memory(
    teacher: Shape, *, tokens: int, logits: int, int8: bool = False, gpus: int = 1, half: int = 2
) -> int:
    """Bytes of a teacher that reads `tokens` at once and makes `logits` rows of logits."""
    work = half * tokens * (4 * teacher.width + 3 * teacher.inner) + 2 * _FP32 * logits * teacher.vocabulary
    return _resident(teacher, int8=int8, gpus=gpus, half=half) + work


def writing_memory(model: Shape, *, slots: int, capacity: int, gpus: int = 1, half: int = 2) -> int:
    """Bytes of a model that writes in `slots` at once."""
    return _resident(model, int8=False, gpus=gpus, half=half) + slot_bytes(
        model, slots=slots, capacity=capacity, half=half
    )


def slot_bytes(shape: Shape, *, slots: int, capacity: int, half: int = 2) -> int:
    """Keys and values of all slots, and their rows of logits."""
    return slots * (capacity * shape.layers * 2 * shape.keys * half + 2 * _FP32 * shape.vocabulary)


def activation_bytes(learning: Learning, *, half: int = 2) -> int:
    """What autograd keeps of a token for the backward pass, over all layers that gradients reach."""
    shape, full = learning.shape, learning.lora is None
    stream = _FP32 * shape.width  # the residual stream stays fp32: every norm keeps what it read,
    norms = shape.norms * stream * (2 if full else 1)  # and what it made, where its weight learns
    reads = 5 * half * shape.width if half < _FP32 else 2 * stream  # autocast makes each linear map a copy of its own
    attention = half * (3 * shape.queries + 2 * shape.keys) + _FP32 * shape.heads
    if shape.head_norms:
        attention += (shape.queries + shape.keys) * (_FP32 + (half if full else 0))
    dropped = 0  # a byte a number that dropout may zero
    if learning.lora is not None and learning.lora.dropout:
        dropped = sum(shape.maps[target][0] for target in learning.lora.targets or shape.maps)
    layer = norms + reads + attention + 4 * half * shape.inner + dropped
    if learning.checkpointed:  # what every layer reads, and all of the one that is computed again
        return learning.reached * stream + layer + 2 * stream
    return learning.reached * layer + 2 * stream


def _memory(learning: Learning, *, gpus: int, half: int) -> Memory:
    shape, trained = learning.shape, learning.trained
    return Memory(
        weights=_share(_FP32 * (shape.parameters + learning.adapters), gpus),
        gradients=_share(_FP32 * trained, gpus),
        optimizer=_share(_MOMENTS * trained, gpus),
        average=_share(_FP32 * trained, gpus) if learning.averaged else 0,
        copies=_copies(learning, gpus=gpus, half=half),
        activations=learning.pass_tokens * activation_bytes(learning, half=half),
        loss=_loss(learning, gpus=gpus, half=half),
        teacher=_teacher(learning, gpus=gpus, half=half),
        own_answers=_own_answers(learning, half=half),
    )


def _copies(learning: Learning, *, gpus: int, half: int) -> int:
    """One GPU: autocast's copy of every matrix lives until the backward pass has used it. Several: a layer's weights
    whole in that arithmetic and its gradients whole in fp32, for the layers in work."""
    shape = learning.shape
    if gpus > 1:
        return min(_UNITS, shape.layers) * shape.per_layer * (half + _FP32)
    return 0 if half == _FP32 else half * learning.reached * shape.matrices_per_layer


def _loss(learning: Learning, *, gpus: int, half: int) -> int:
    shape, tokens = learning.shape, learning.pass_tokens
    head = shape.embeddings * (half if half < _FP32 else 0)
    if gpus > 1:
        head += shape.embeddings * _FP32
    numbers = 8 if learning.dense else 4
    row = shape.vocabulary * (numbers + (half if half < _FP32 else 0))
    rows = min(tokens, max(LOSS_BYTES // row // 8 * 8, 8))
    work = 2 * numbers * shape.vocabulary  # probabilities and what they are multiplied with, beside the logits
    tiles = rows * (row + work) + tokens * shape.width * (half + _FP32)
    fresh = shape.embeddings * _FP32 * (learning.head_learns + (not shape.tied and not learning.frozen_embeddings))
    largest = max(before * after for before, after in shape.maps.values())
    backward = tokens * (3 * half * shape.inner + 2 * _FP32 * shape.width) + (half + _FP32) * largest
    return fresh + max(head + tiles, backward)


def _teacher(learning: Learning, *, gpus: int, half: int) -> int:
    if learning.teacher is None:
        return 0
    hidden = half * learning.pass_tokens * learning.teacher.width
    return _resident(learning.teacher, int8=learning.teacher_int8, gpus=gpus, half=half) + hidden


def _own_answers(learning: Learning, *, half: int) -> int:
    """Slots, and the half-precision copy that writes in them; a teacher that mixes in has its own."""
    if not learning.slots:
        return 0
    writer = half * learning.shape.parameters if half < _FP32 else 0
    written = writer + slot_bytes(learning.shape, slots=learning.slots, capacity=learning.capacity, half=half)
    if learning.teacher is None or not learning.teacher_capacity:
        return written
    return written + slot_bytes(learning.teacher, slots=learning.slots, capacity=learning.teacher_capacity, half=half)


def _resident(model: Shape, *, int8: bool, gpus: int, half: int) -> int:
    """Weights that only read: whole on one GPU; sharded, with the layers in work and the head whole, on several. Of
    int8 ones, the matrix in work in the arithmetic of its inputs too."""
    layer, in_work = half * model.per_layer, 0
    if int8:
        outputs = sum(after for _, after in model.maps.values())
        layer -= (half - 1) * model.matrices_per_layer - _FP32 * outputs
        in_work = half * max(before * after for before, after in model.maps.values())
    whole = half * (model.parameters - model.layers * model.per_layer) + model.layers * layer
    if gpus == 1:
        return whole + in_work
    sharded = _share(whole, gpus) + min(_UNITS, model.layers) * layer + half * model.embeddings
    return min(whole, sharded) + in_work


def _share(size: int, gpus: int) -> int:
    return -(-size // gpus)
