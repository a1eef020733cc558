"""Checkpoints of one arm: `step-000120/` with the tensors as safetensors and the rest as JSON; no pickle.

A checkpoint is written under a temporary name and renamed, so one that has its name is whole. The newest is kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

State = Mapping[str, Any]


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], state: State) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=".draft-"))
        try:
            save_file(dict(tensors), draft / "tensors.safetensors")
            (draft / "state.json").write_text(json.dumps({**state, "step": step}), encoding="utf-8")
            draft.replace(self._folder / f"step-{step:06d}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for older in self._all()[:-1]:
            shutil.rmtree(older)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint, or None where there is none."""
        found = self._all()
        if not found:
            return None
        state = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        return load_file(found[-1] / "tensors.safetensors"), state

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))
