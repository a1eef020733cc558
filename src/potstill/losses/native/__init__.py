"""The one product that PyTorch lacks on a CPU: bf16 in, fp32 out. Compiled with the machine's own compiler when it is
first asked for (a second), kept in the cache under the hash of its source and the compiler's version.

Without AVX512-BF16 or with `POTSTILL_NATIVE=0`, `bf16_product` is None and the caller takes PyTorch's product, which
rounds its result to bf16. So it is where the compiler is missing or fails; since the same recipe then gives other bits
than on a machine like this one, a warning says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor, float, Tensor], None]
"""(hidden_CD, weight_VD, alpha, out_CV): out = alpha * hidden weight'. D must be even and rows without gaps."""

_SOURCE = Path(__file__).with_name("product.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


@cache
def bf16_product() -> Product | None:
    """Compiles at most once a process."""
    if os.environ.get("POTSTILL_NATIVE") == "0" or not has_avx512_bf16():
        return None
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.CalledProcessError) as error:
        logging.getLogger("potstill").warning(
            "bf16 logits are rounded to bf16, because the faster and more accurate product could not be built (%s): "
            "install a C++ compiler that works, or set POTSTILL_NATIVE=0 to accept it",
            _in_short(error),
        )
        return None
    call = library.bf16_product
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    call.argtypes = [pointer, number, number, pointer, number, number, number, ctypes.c_float, pointer, number]
    call.restype = None

    def product(hidden_CD: Tensor, weight_VD: Tensor, alpha: float, out_CV: Tensor) -> None:
        rows, width = hidden_CD.shape
        call(
            hidden_CD.data_ptr(),
            hidden_CD.stride(0),
            rows,
            weight_VD.data_ptr(),
            weight_VD.stride(0),
            len(weight_VD),
            width,
            alpha,
            out_CV.data_ptr(),
            out_CV.stride(0),
        )

    return product


def fits(hidden_CD: Tensor, weight_VD: Tensor) -> bool:
    """Whether the product takes these: bf16 on a CPU, an even width, rows without gaps."""
    both = (hidden_CD, weight_VD)
    return hidden_CD.shape[1] % 2 == 0 and all(
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.stride(1) == 1 for x in both
    )


def has_avx512_bf16() -> bool:
    return (
        platform.machine() in ("x86_64", "AMD64")
        and platform.system() == "Linux"
        and torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    )


def _in_short(error: OSError | subprocess.CalledProcessError) -> str:
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (said.strip() or str(error)).splitlines()[0]


def _built() -> Path:
    """The shared library, compiled if the cache lacks it. Two processes may both compile; the last one's stays."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no c++ or g++ on the PATH")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(_SOURCE.read_bytes() + version + repr(_FLAGS).encode() + _processor()).hexdigest()[:24]
    home = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    folder = Path(os.environ.get("POTSTILL_CACHE") or Path(home) / "potstill") / "native"
    library = folder / f"{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            draft = Path(scratch) / "product.so"
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(draft)]
            subprocess.run(command, check=True, capture_output=True)
            draft.replace(library)
    return library


def _processor() -> bytes:
    """`-march=native` code of another processor must not be found in a shared home."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "").encode()
