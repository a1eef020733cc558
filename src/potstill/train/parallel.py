"""Several processes train one model (FSDP2; Zhao et al. 2023): each keeps a part of every weight, gradient and moment
and makes its share of every step. A layer is whole while it runs; embeddings, final norm and head are whole for a pass.

Everything that asks for agreement is called by all processes in the same order: as many passes, as many batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from potstill.errors import Stopped
from potstill.models.forward import decoder_layers
from potstill.models.load import compute_dtype, device
from potstill.processes import Process
from potstill.store.parts import read_parts, write_parts
from potstill.train.batch import Row, passes
from potstill.train.world import Root, World

T = TypeVar("T")

_POLL = 0.2  # seconds between two looks at what the first process is doing


@contextmanager
def together(this: Process) -> Generator[World]:
    """Join the processes that `torchrun` started. Raises Stopped where one of them goes away."""
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(this.local_rank)
        store, _, _ = next(rendezvous("env://"))
        _after_the_first(this, store, "begin", lambda: None)  # it may have had work of its own before
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # what is agreed on lies on the CPU
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=this.rank, world_size=this.count)
        yield Several(this, store)
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Stopped(
                "another process of this training is gone", way_out="see what it said; the same command goes on"
            ) from error
        raise


class Several(World):
    """One of several processes."""

    loads_on = torch.device("cpu")  # the machine's memory, not a device's, holds a model before it is in parts

    def __init__(self, this: Process, store: Store) -> None:
        self.rank, self.size = this.rank, this.count
        self._this, self._store, self._turns = this, store, 0
        self._mesh = init_device_mesh(device().type, (this.count,))

    def rooted(self, model: nn.Module) -> Root:
        """Cut the model into parts. Layers travel in the dtype that autocast would give their products; masters,
        gradients and what lies outside the layers are fp32. A model that only reads travels as it was loaded: int8
        weights as int8, and their scales in fp32."""
        assert isinstance(model, PreTrainedModel), "only language models are cut into parts"
        learns = any(parameter.requires_grad for parameter in model.parameters())
        cast = compute_dtype() if learns else None
        layers = MixedPrecisionPolicy(cast, torch.float32, cast_forward_inputs=False)
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=self._mesh, mp_policy=layers)
        root = _Sharded(model, keep=self.first)
        outside = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(root, mesh=self._mesh, reshard_after_forward=False, mp_policy=outside)
        for part in _parts(root):
            part.set_gradient_divide_factor(1.0)  # terms are divided by the whole step's count already
            part.set_force_sum_reduction_for_comms(True)
        return root

    def share(self, rows: Sequence[Row], pass_tokens: int) -> list[list[Row]]:
        """As many passes in every process: whoever has fewer makes some that count nothing."""
        planned = [passes(some, pass_tokens) for some in dealt(rows, self.size)]
        idle = [replace(min(rows, key=lambda row: row.tokens), weight=0.0)]
        mine = planned[self.rank]
        return [*mine, *[idle] * (max(map(len, planned)) - len(mine))]

    def even(self, parts: Sequence[T]) -> Sequence[T]:
        most = torch.tensor(len(parts))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return [*parts, *[parts[-1]] * (int(most) - len(parts))]

    def added(self, numbers: Mapping[str, float]) -> Mapping[str, float]:
        sums = torch.tensor(list(numbers.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(numbers, sums.tolist(), strict=True))

    def told(self, say: Callable[[], T]) -> T:
        said: list[Any] = [say() if self.first else None]
        dist.broadcast_object_list(said, device=torch.device("cpu"))
        return said[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        self._turns += 1
        return _after_the_first(self._this, self._store, f"turn {self._turns}", work)

    def save(self, draft: AbstractContextManager[Path], tensors: Mapping[str, Tensor]) -> None:
        if not self.first:
            write_parts(self.told(Path), tensors)
            return
        with draft as folder:
            write_parts(self.told(lambda: folder), tensors)

    def read(self, place: Path, *, into: Mapping[str, Tensor]) -> None:
        read_parts(place, into=into)


def dealt(rows: Sequence[Row], among: int) -> list[list[Row]]:
    """A step's examples for each process, about as many tokens for one as for another: a pure function."""
    hands: list[list[Row]] = [[] for _ in range(among)]
    held = [0] * among
    for row in sorted(rows, key=lambda row: -row.tokens):
        least = held.index(min(held))
        hands[least].append(row)
        held[least] += row.tokens
    return hands


class _Sharded(nn.Module):
    """FSDP2's outermost module: what runs through it finds embeddings and head whole, whichever module they are of."""

    def __init__(self, model: PreTrainedModel, *, keep: bool) -> None:
        super().__init__()
        self.model, self._keep = model, keep

    def forward(self, work: Callable[[], T]) -> T:
        return work()

    def gather(self) -> None:
        for part in _parts(self):
            part.reshard()
        whole: dict[nn.Parameter, nn.Parameter | None] = {}
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if not isinstance(parameter, DTensor):
                    continue
                if parameter not in whole:
                    full = parameter.full_tensor()
                    whole[parameter] = nn.Parameter(full.cpu(), parameter.requires_grad) if self._keep else None
                if (kept := whole[parameter]) is not None:
                    setattr(module, name, kept)


def _parts(root: nn.Module) -> list[FSDPModule]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def _after_the_first(this: Process, store: Store, name: str, work: Callable[[], T]) -> T:
    """The others look now and then whether it is done: a wait inside torch would have a limit and hear no signal."""
    if this.first:
        done = work()
        store.set(name, "done")
        return done
    while not store.check([name]):
        time.sleep(_POLL)
    return work()
