"""The numbers that this process computes in: fp32 or bf16, as the recipe's `train.precision` says.

Found without torch, so that `check` can show it. torch is asked only where there is a GPU and nobody chose.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

from potstill.errors import InputError

Precision = Literal["fp32", "bf16"]
Setting = Literal["auto", "fp32", "bf16"]
"""What `train.precision` may be. auto: POTSTILL_PRECISION, else bf16 where the hardware multiplies it, else fp32."""

VARIABLE = "POTSTILL_PRECISION"
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")  # NVIDIA, its Jetson, AMD, either under WSL
_RUNNING: ContextVar[Setting] = ContextVar("precision", default="auto")


@contextmanager
def precision(setting: Setting) -> Generator[None]:
    """What runs inside, in this thread and its asyncio tasks, computes in it. A thread of its own has to be told again:
    it takes models that were loaded here, as they are."""
    token = _RUNNING.set(setting)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def resolved(setting: Setting | None = None) -> Precision:
    """fp32 or bf16; None: as the stage that runs was told. Raises InputError for a wrong POTSTILL_PRECISION."""
    chosen = _chosen(_RUNNING.get() if setting is None else setting)
    if chosen is not None:
        return chosen
    if _has_gpu():
        from potstill.models.gpu import multiplies_bf16  # torch takes seconds

        if (answer := multiplies_bf16()) is not None:
            return "bf16" if answer else "fp32"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def spoken(setting: Setting) -> str:
    """The same with its reason, without torch."""
    if (chosen := _chosen(setting)) is not None:
        return f"{chosen} ({'train.precision' if setting != 'auto' else VARIABLE})"
    if _has_gpu():
        return "bf16 on a GPU that multiplies it, else fp32"
    return "bf16 (this CPU multiplies it)" if cpu_multiplies_bf16() else "fp32 (this CPU has no bf16 arithmetic)"


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether it has AVX512-BF16: emulated bf16 is several times slower than fp32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return False
    return "avx512_bf16" in next((line for line in lines if line.startswith("flags")), "").split()


def _chosen(setting: Setting) -> Precision | None:
    """By the recipe or the environment; None: the hardware decides."""
    if setting != "auto":
        return setting
    match os.environ.get(VARIABLE, ""):
        case "":
            return None
        case "fp32" | "bf16" as named:
            return named
        case other:
            raise InputError(f"{VARIABLE} is '{other}'", way_out="set it to fp32 or bf16, or unset it")


def _has_gpu() -> bool:
    return any(Path(driver).exists() for driver in _DRIVERS)
