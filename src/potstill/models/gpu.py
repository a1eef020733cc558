"""What torch knows of the GPU."""

from __future__ import annotations

import torch


def multiplies_bf16() -> bool | None:
    """Whether the GPU multiplies bf16 natively; None: torch sees no GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.is_bf16_supported(including_emulation=False)
