"""Peak memory of a block of work: what it added to this process's resident set, as Linux counts it."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Peak:
    """Filled when the block ends; None where the system does not tell."""

    def __init__(self) -> None:
        self.added_bytes: int | None = None


@contextmanager
def peak_memory() -> Generator[Peak]:
    """Load the model inside the block: its weights are part of what it needs.

    What others left behind is collected first: freed inside the block, it would hide what the block needed.
    """
    peak = Peak()
    gc.collect()
    try:
        _RESET.write_text("5")  # resets the high-water mark
        before = _kilobytes("VmRSS")
    except OSError:
        before = None
    yield peak
    if before is not None:
        peak.added_bytes = max(_kilobytes("VmHWM") - before, 0) * 1024


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
