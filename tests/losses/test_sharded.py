"""A head sharded over two processes, as FSDP2 keeps it: gathered once, its gradient comes back sharded and averaged."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from potstill.losses import Hidden, linear_divergence


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((12, 8), (31, 8), (12, 6), (31, 6))
    h, w, ht, wt = (torch.randn(*shape, generator=draw) for shape in shapes)
    return h, w, ht, wt


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    h, w, ht, wt = problem()
    head = distribute_tensor(w, init_device_mesh("cpu", (2,)), [Shard(0)]).requires_grad_()
    mine = slice(rank * 6, rank * 6 + 6)
    linear_divergence(h[mine], head, teacher=Hidden(ht[mine], wt)).sum().backward()
    assert isinstance(head.grad, DTensor) and head.grad.placements == (Shard(0),)
    torch.save(head.grad.full_tensor(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_average_of_their_gradients(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    h, w, ht, wt = problem()
    w.requires_grad_()
    (linear_divergence(h, w, teacher=Hidden(ht, wt)).sum() / 2).backward()
    assert w.grad is not None
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), w.grad, rtol=1e-5, atol=1e-6)
