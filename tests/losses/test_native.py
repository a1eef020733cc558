"""The compiled bf16 product: the same numbers as float64 to fp32's last digits, at any shape."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.losses.native import bf16_product, fits
from potstill.losses.products import logits

native = pytest.mark.skipif(
    not (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()),
    reason="this processor has no AVX512-BF16",
)


@native
def test_it_is_there_where_the_processor_and_a_compiler_are() -> None:
    assert shutil.which("c++") or shutil.which("g++"), "the test machine has no C++ compiler"
    assert bf16_product() is not None


@native
@given(
    rows=st.integers(1, 40),
    vocabulary=st.integers(1, 200),
    half=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
)
def test_it_equals_float64(rows: int, vocabulary: int, half: int, seed: int, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 2 * half, generator=draw).bfloat16()
    weight = torch.randn(vocabulary + 3, 2 * half, generator=draw).bfloat16()[3:]
    wide = torch.full((rows, vocabulary + 5), 7.0)
    logits(hidden, weight, alpha=alpha, out_CV=wide[:, :vocabulary])
    exact = alpha * hidden.double() @ weight.double().T
    torch.testing.assert_close(wide[:, :vocabulary].double(), exact, rtol=1e-5, atol=1e-5)
    assert (wide[:, vocabulary:] == 7.0).all()


def test_what_it_cannot_take_it_leaves() -> None:
    odd = torch.zeros(2, 3).bfloat16()
    assert not fits(odd, odd)
    assert not fits(torch.zeros(2, 4), torch.zeros(2, 4))
    assert not fits(torch.zeros(4, 2).bfloat16().T, torch.zeros(2, 4).bfloat16())


def test_without_it_logits_are_rounded_but_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.losses.products.bf16_product", lambda: None)
    hidden, weight = torch.randn(5, 8).bfloat16(), torch.randn(11, 8).bfloat16()
    out = torch.empty(5, 11)
    logits(hidden, weight, alpha=2.0, out_CV=out)
    torch.testing.assert_close(out.double(), 2 * hidden.double() @ weight.double().T, rtol=2e-2, atol=5e-2)


BROKEN = {"no compiler": (None, "no c++ or g++ on the PATH"), "one that fails": ("exit 1", "returned non-zero exit")}


@pytest.mark.parametrize(("script", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_product_that_cannot_be_built_is_said_once(tmp_path: Path, script: str | None, reason: str) -> None:
    if script is not None:
        (tmp_path / "c++").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "c++").chmod(0o755)
    program = (
        "from potstill.losses import native\n"
        "native.has_avx512_bf16 = lambda: True\n"  # so that any machine tries to build it
        "assert native.bf16_product() is None and native.bf16_product() is None"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "POTSTILL_CACHE": str(tmp_path), "POTSTILL_NATIVE": ""}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    (line,) = ran.stderr.splitlines()
    assert reason in line and "POTSTILL_NATIVE=0" in line
