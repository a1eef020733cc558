"""What tests with models of more than toy size compute in."""

from __future__ import annotations

from potstill.models.precision import Setting, cpu_multiplies_bf16

AFFORDABLE: Setting = "auto" if cpu_multiplies_bf16() else "fp32"
"""Emulated bf16 takes ten times as long as fp32: with a real model, longer than a test may."""
