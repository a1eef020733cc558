"""The loss core beside its peers: seconds, memory and error of one forward and backward.

`make bench-losses` runs it. Every measurement is a process of its own, so that one's peak memory and compiled code are
not another's; repeats go round all cells, so that a slow minute of the machine hits all of them. Seconds are of the
second of two passes (the first compiles, and touches the memory). Peak memory is what the process's resident set grows
by during a pass, less the gradients that it leaves. The gradient's zeroing is outside the clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

WIDTH, TEACHER_WIDTH, VOCABULARY = 288, 576, 49_152
DENSE = ("forward_kl", "reverse_kl", "jsd", "total_variation")
PEERS = {"trl": "TRL ChunkedDivergenceFunction", "liger": "Liger, eager", "liger-compiled": "Liger, compiled"}


@dataclass(frozen=True, slots=True)
class Cell:
    system: str
    loss: str
    rows: int
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Measured:
    seconds: float
    peak_bytes: int
    value: float


def cells() -> list[Cell]:
    """Peers have no total variation, no sparse signals, and no low-memory engine."""
    found = [Cell("gemm", "dense", rows, dtype) for rows, dtype in product((2048, 4096), ("float32", "bfloat16"))]
    for rows, loss in product((2048, 4096), DENSE):
        systems = ["potstill"] if loss == "total_variation" else ["potstill", "trl", "liger"]
        found += [Cell(system, loss, rows) for system in systems]
    found += [Cell("eager", loss, 2048) for loss in DENSE]
    found += [Cell(s, loss, 4096, "bfloat16") for loss in DENSE[:3] for s in ("potstill", "liger-compiled")]
    found += [Cell("potstill", "jsd", rows) for rows in (1024, 16_384)]
    found += [Cell("recompute", loss, 4096) for loss in ("forward_kl", "jsd")]
    return found + [Cell("potstill", loss, 4096) for loss in ("cross_entropy", "top64", "sampled12")]


# One measurement


@dataclass(frozen=True, slots=True)
class Inputs:
    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor

    @staticmethod
    def of(cell: Cell) -> Inputs:
        """Logits with a standard deviation near 1 (student) and 1.4 (teacher)."""
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=draw) * scale).to(getattr(torch, cell.dtype))

        return Inputs(
            normal(cell.rows, WIDTH).requires_grad_(),
            normal(VOCABULARY, WIDTH, scale=0.06).requires_grad_(),
            normal(cell.rows, TEACHER_WIDTH),
            normal(VOCABULARY, TEACHER_WIDTH, scale=0.06),
        )

    def few(self) -> Inputs:
        """Eight rows and a fiftieth of the vocabulary."""
        cut = (
            x.detach()[: 8 if x.shape[0] != VOCABULARY else 1024].clone()
            for x in (self.hidden, self.head, self.teacher_hidden, self.teacher_head)
        )
        hidden, head, teacher_hidden, teacher_head = cut
        return Inputs(hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head)


def measure(cell: Cell) -> Measured:
    few = Inputs.of(cell).few()
    SYSTEMS[cell.system](
        replace(cell, rows=8), few
    )()  # what loads libraries and starts threads is not the loss's memory
    inputs = Inputs.of(cell)
    run = SYSTEMS[cell.system](cell, inputs)
    seconds, value, peak = 0.0, 0.0, 0
    for _ in range(2):
        inputs.hidden.grad = inputs.head.grad = None
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident set so far
        start = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - start
        gradients = sum(x.grad.nbytes for x in (inputs.hidden, inputs.head) if x.grad is not None)
        peak = max(peak, _resident("VmHWM") - before - gradients)
    return Measured(seconds, peak, value)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def potstill(cell: Cell, inputs: Inputs, *, engine: str = "stored") -> Callable[[], float]:
    from potstill.losses import Hidden, Sampled, TopK, linear_divergence

    draw = torch.Generator().manual_seed(1)
    loss, vocabulary = cell.loss, len(inputs.head)
    match loss:
        case "cross_entropy":
            ids = torch.randint(vocabulary, (cell.rows, 1), generator=draw)
            loss, teacher = "forward_kl", Sampled(ids, torch.ones(cell.rows, 1))
        case "sampled12":
            ids = torch.rand(cell.rows, vocabulary, generator=draw).topk(12).indices
            loss, teacher = "forward_kl", Sampled(ids, torch.ones(cell.rows, 12))
        case "top64":
            logp = torch.log_softmax(torch.randn(cell.rows, vocabulary, generator=draw), -1).topk(64)
            loss, teacher = "forward_kl", TopK(logp.indices, logp.values)
        case _:
            teacher = Hidden(inputs.teacher_hidden, inputs.teacher_head)

    def run() -> float:
        nats_N = linear_divergence(inputs.hidden, inputs.head, teacher=teacher, divergence=loss, engine=engine)
        mean = nats_N.mean()
        mean.backward()
        return mean.item()

    return run


def recompute(cell: Cell, inputs: Inputs) -> Callable[[], float]:
    return potstill(cell, inputs, engine="recompute")


def eager(cell: Cell, inputs: Inputs) -> Callable[[], float]:
    """Logits whole, the textbook formula, autograd."""
    from potstill.losses import divergence

    def run() -> float:
        student = torch.log_softmax((inputs.hidden @ inputs.head.T).float(), -1)
        teacher = torch.log_softmax((inputs.teacher_hidden @ inputs.teacher_head.T).float(), -1)
        mean = divergence(cell.loss, student_logp_NV=student, teacher_logp_NV=teacher).mean()
        mean.backward()
        return mean.item()

    return run


BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def trl(cell: Cell, inputs: Inputs) -> Callable[[], float]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def run() -> float:
        per_row, _ = ChunkedDivergenceFunction.apply(
            inputs.hidden,
            inputs.head,
            None,
            inputs.teacher_hidden,
            inputs.teacher_head,
            None,
            BETA[cell.loss],
        )
        mean = per_row.mean()
        mean.backward()
        return mean.item()

    return run


def liger(cell: Cell, inputs: Inputs, *, compiled: bool = False) -> Callable[[], float]:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[cell.loss], compiled=compiled)
    labels = torch.zeros(cell.rows, dtype=torch.long)

    def run() -> float:
        mean = loss(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, labels)
        mean.backward()
        return mean.item()

    return run


def liger_compiled(cell: Cell, inputs: Inputs) -> Callable[[], float]:
    return liger(cell, inputs, compiled=True)


def gemm(cell: Cell, inputs: Inputs) -> Callable[[], float]:
    """The four products that any loss needs, 256 rows at a time as the stored engine does, and nothing else."""
    rows = min(256, cell.rows)
    dtype = inputs.hidden.dtype

    @torch.no_grad()
    def run() -> float:
        student, teacher = (torch.empty(rows, len(inputs.head), dtype=dtype) for _ in range(2))
        head_grad, hidden_grad = torch.zeros_like(inputs.head), torch.empty_like(inputs.hidden)
        for start in range(0, cell.rows, rows):
            some = slice(start, start + rows)
            torch.mm(inputs.hidden[some], inputs.head.T, out=student)
            torch.mm(inputs.teacher_hidden[some], inputs.teacher_head.T, out=teacher)
            torch.mm(student, inputs.head, out=hidden_grad[some])
            head_grad.addmm_(student.T, inputs.hidden[some])
        return 0.0

    return run


SYSTEMS: dict[str, Callable[[Cell, Inputs], Callable[[], float]]] = {
    "potstill": potstill,
    "recompute": recompute,
    "eager": eager,
    "trl": trl,
    "liger": liger,
    "liger-compiled": liger_compiled,
    "gemm": gemm,
}


def probability_errors() -> dict[str, float]:
    """Largest relative error of a bf16 student probability against float64 on the same bf16 inputs, 64 rows."""
    from potstill.losses.problem import Head
    from potstill.losses.tiles import softmax

    inputs = Inputs.of(Cell("potstill", "forward_kl", 64, "bfloat16"))
    hidden, weight = inputs.hidden.detach(), inputs.head.detach()
    exact = torch.softmax(hidden.double() @ weight.double().T, -1)
    ours = Head(weight, None, 1.0, None, 1.0).logits(hidden, out_CV=torch.empty(64, VOCABULARY))

    def as_liger(h: Tensor, w: Tensor) -> Tensor:
        return torch.log_softmax(h @ w.T, -1)

    found = {
        "potstill": softmax(ours).p_BV,
        "liger": as_liger(hidden, weight).exp(),
        "liger-compiled": torch.compile(as_liger)(hidden, weight).exp(),
    }
    return {name: ((p.double() - exact).abs() / exact).max().item() for name, p in found.items()}


# All of them, and the page


def run_all(repeats: int, out: Path) -> None:
    results: dict[Cell, list[Measured]] = {cell: [] for cell in cells()}
    for repeat in range(repeats):
        for cell in results:
            found = json.loads(_child("--cell", json.dumps(asdict(cell))))
            results[cell].append(Measured(**found))
            print(f"{repeat + 1}/{repeats} {_name(cell):48} {found['seconds']:7.3f} s", flush=True)
    errors = json.loads(_child("--errors"))
    page = _page(results, errors, repeats)
    out.write_text(page)
    print(page)


def _child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def _name(cell: Cell) -> str:
    return f"{cell.system} {cell.loss} T={cell.rows} {cell.dtype}"


def _page(results: dict[Cell, list[Measured]], errors: dict[str, float], repeats: int) -> str:
    best = {cell: min(m.seconds for m in found) for cell, found in results.items()}
    lines = [
        "# The loss core beside its peers",
        "",
        f"`make bench-losses`, {repeats} repeats, one process a cell, on {_machine()}.",
        f"Versions: {_versions()}. Student width {WIDTH}, teacher width {TEACHER_WIDTH}, vocabulary {VOCABULARY:,}.",
        "Forward and backward of heads and loss; `x GEMM` is the time over that of the four matrix products alone, "
        "`MB` the peak above inputs and gradients.",
        "",
        "| dtype | rows | loss | system | min s | median s | x GEMM | MB | value |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, found in results.items():
        floor = best.get(Cell("gemm", "dense", cell.rows, cell.dtype))
        ratio = f"{best[cell] / floor:.2f}" if floor and cell.loss in DENSE else ""
        lines.append(
            f"| {cell.dtype} | {cell.rows:,} | {cell.loss} | {PEERS.get(cell.system, cell.system)} "
            f"| {best[cell]:.3f} | {statistics.median(m.seconds for m in found):.3f} | {ratio} "
            f"| {max(m.peak_bytes for m in found) / 2**20:,.0f} | {found[0].value:.6f} |"
        )
    lines += ["", "## Against the peers", "", "| dtype | rows | loss | peer | times faster | memory, share of it |"]
    lines.append("|---|---|---|---|---|---|")
    for cell, found in results.items():
        ours = Cell("potstill", cell.loss, cell.rows, cell.dtype)
        if cell.system in PEERS:
            share = max(m.peak_bytes for m in results[ours]) / max(m.peak_bytes for m in found)
            lines.append(
                f"| {cell.dtype} | {cell.rows:,} | {cell.loss} | {PEERS[cell.system]} "
                f"| {best[cell] / best[ours]:.2f} | 1/{1 / share:.0f} |"
            )
    plain = best[Cell("potstill", "cross_entropy", 4096)]
    lines += ["", "## Sparse teachers, over our own cross-entropy", ""]
    lines += [f"- {loss}: {best[Cell('potstill', loss, 4096)] / plain:.3f}" for loss in ("top64", "sampled12")]
    lines += ["", "## bf16", ""]
    for loss in DENSE[:3]:
        half, full = (best[Cell("potstill", loss, 4096, dtype)] for dtype in ("bfloat16", "float32"))
        lines.append(f"- {loss}: {full / half:.2f} times our own fp32")
    lines += [f"- largest relative error of a probability, {name}: {value:.2e}" for name, value in errors.items()]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{next(names).split(':')[1].strip()}, {torch.get_num_threads()} threads, {capability}, {platform.system()}"


def _versions() -> str:
    packages = ("torch", "trl", "liger-kernel", "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results/losses.md"))
    parser.add_argument("--cell", help="measure one cell, given as JSON, and print the result")
    parser.add_argument("--errors", action="store_true", help="print the largest probability errors")
    asked = parser.parse_args()
    if asked.cell:
        print(json.dumps(asdict(measure(Cell(**json.loads(asked.cell))))))
    elif asked.errors:
        print(json.dumps(probability_errors()))
    else:
        run_all(asked.repeats, asked.out)


if __name__ == "__main__":
    main()
