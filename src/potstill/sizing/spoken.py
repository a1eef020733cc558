"""Sizes in words for people and in values for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from potstill.sizing.job import Cache, Fit, Sized, Sizes
from potstill.sizing.memory import Memory
from potstill.sizing.pace import SHARE_OF_PEAK
from potstill.store.forms import HiddenForm, SampledForm, TopKForm

COLUMNS = ("GPU", "GPUs", "GB on each", "tokens/s", "training", "scoring")
ASSUMED = (
    f"assumed: {SHARE_OF_PEAK:.0%} of the GPU's peak (in bf16, unless 'train.precision' is fp32), {{answers}}; several "
    "GPUs share weights by FSDP2; scoring is done once, before training; what the student writes itself and the "
    "test set come on top"
)
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "running average",
    "copies": "half-precision copies",
    "activations": "activations",
    "loss": "head, loss and backward",
    "teacher": "teacher",
    "own_answers": "own answers",
}


def sentences(sizes: Sizes) -> list[str]:
    """What stands above the table of GPUs."""
    said = [f"{model.role}: {model.name}, {_parameters(model)}" for model in sizes.models]
    said.append(f"training: at most {sizes.examples:,} examples, {sizes.tokens:,} tokens over all epochs")
    if sizes.memory is None:
        said.append("memory and time of training: unknown for an encoder, or a model whose configuration is not known")
    else:
        said.append(f"memory on one GPU, {sizes.pass_tokens:,} tokens per pass: {_memory(sizes.memory)}")
    if sizes.cache is not None:
        said.append(f"signals on disk: {_cache(sizes.cache)}")
    return said


def row(fit: Fit) -> tuple[str, ...]:
    """A line of the table whose `COLUMNS` stand above."""
    gpu, each = f"{fit.gpu.name}, {fit.gpu.gigabytes} GB", f"{fit.memory / 1e9:,.1f}"
    if fit.count is None:
        return (gpu, "none", each, "-", "-", "-")
    scoring = hours(fit.scoring_hours) if fit.scoring_hours else "-"
    return (gpu, str(fit.count), each, f"~{fit.tokens_per_second:,.0f}", hours(fit.hours), scoring)


def advice(sizes: Sizes) -> list[str]:
    """What would make the job fit where it does not."""
    said: list[str] = []
    for fit in sizes.fits:
        ways = [f"--set train.pass_tokens={fit.pass_tokens}"] if fit.pass_tokens is not None else []
        ways += ["--set train.gradient_checkpointing=true"] if fit.checkpointed else []
        if fit.count is None and ways:
            said.append(f"{fit.gpu.name}: with {' or '.join(ways)} it fits")
    return said


def values(sizes: Sizes) -> dict[str, Any]:
    """For `--json`: bytes, tokens and hours."""
    memory = None if sizes.memory is None else {**sizes.memory.parts, "total": sizes.memory.total}
    cache = None
    if sizes.cache is not None:
        cache = {"bytes_per_token": sizes.cache.per_token, "tokens": sizes.cache.tokens, "bytes": sizes.cache.bytes}
    return {
        "models": [asdict(model) for model in sizes.models],
        "examples_at_most": sizes.examples,
        "tokens_trained": sizes.tokens,
        "pass_tokens": sizes.pass_tokens,
        "memory_on_one_gpu": memory,
        "signals": cache,
        "gpus": [
            {
                "gpu": fit.gpu.name,
                "gigabytes": fit.gpu.gigabytes,
                "count": fit.count,
                "memory_on_each": fit.memory,
                "tokens_per_second": round(fit.tokens_per_second),
                "training_hours": fit.hours,
                "scoring_hours": fit.scoring_hours,
                "pass_tokens_that_fit": fit.pass_tokens,
                "fits_with_gradient_checkpointing": fit.checkpointed,
            }
            for fit in sizes.fits
        ],
    }


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def hours(spent: float) -> str:
    return f"~{spent:,.1f} h" if spent >= 1 else f"~{spent * 60:,.0f} min" if spent >= 1 / 60 else "< 1 min"


def _parameters(model: Sized) -> str:
    count, weights = model.parameters, f", {model.quantization} weights" if model.quantization else ""
    if count is None:
        return f"parameters unknown: its configuration is not on this machine{weights}"
    return (f"{count / 1e9:.2f} B parameters" if count >= 1e8 else f"{count / 1e6:.1f} M parameters") + weights


def _memory(memory: Memory) -> str:
    parts = ", ".join(f"{_PARTS[name]} {gigabytes(size)}" for name, size in memory.parts.items() if size)
    return f"{gigabytes(memory.total)} ({parts})"


def _cache(cache: Cache) -> str:
    match cache.form:
        case TopKForm(k):
            form = f"top-{k}"
        case SampledForm(draws):
            form = f"{draws} draws"
        case HiddenForm(dtype):
            form = f"hidden states in {dtype} and the head"
    return f"{form}, {cache.per_token:,.0f} bytes per token x {cache.tokens:,} tokens: {gigabytes(cache.bytes)}"
