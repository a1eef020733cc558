"""What the self-test says of an architecture, path by path, and what a recipe needs of it."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, PretrainedConfig

from potstill.engines.local import prefix_fault
from potstill.engines.slot_model import own_cache_fault, slots_fault
from potstill.errors import InputError
from potstill.models.documents import packed_fault, padded_fault
from potstill.models.forward import checkpointing_fault, gradient_fault, head_fault
from potstill.models.student import cut_fault

Need = Literal["scores", "learns", "checkpoints", "cuts"]
"""What a recipe does with a model: reads its distributions, trains it, computes its layers again in the backward pass,
takes some of its layers. Every model writes: at worst without a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Why each path is not exact, held to plain transformers; None: it is."""

    logits: str | None
    packed_rows: str | None
    padded_rows: str | None
    kept_prefix: str | None
    slots: str | None
    own_cache: str | None
    gradients: str | None
    checkpointing: str | None
    cut_layers: str | None

    def spoken(self) -> str:
        """ "exact: logits, padded rows; not used: packed rows (why)"."""
        faults = {name.replace("_", " "): fault for name, fault in asdict(self).items()}
        exact = ", ".join(name for name, fault in faults.items() if fault is None)
        others = ", ".join(f"{name} ({fault})" for name, fault in faults.items() if fault is not None)
        return f"exact: {exact or 'nothing'}" + (f"; not used: {others}" if others else "")

    def refusal(self, needs: Set[Need]) -> tuple[str, str] | None:
        """What cannot be done, and the way out; None: everything can, on a faster or a plainer path."""
        if self.logits is not None:
            problem = f"its logits are not its head applied to its last hidden states ({self.logits})"
            return problem, "take a model of another architecture, or serve it and let the server score"
        other = "take a model of another architecture"
        batched = needs & {"scores", "learns"}
        if batched and self.packed_rows is not None and self.padded_rows is not None:
            return f"rows padded on the right are not what each is alone ({self.padded_rows})", other
        if "learns" in needs and self.gradients is not None:
            return f"its gradients in batches are not those of plain transformers ({self.gradients})", other
        if "checkpoints" in needs and self.checkpointing is not None:
            problem = f"its layers cannot be computed again in the backward pass ({self.checkpointing})"
            return problem, "set train.gradient_checkpointing to false and take fewer train.pass_tokens"
        if "cuts" in needs and self.cut_layers is not None:
            return (
                f"its layers do not compute in a shorter model what they do now ({self.cut_layers})",
                "take all layers",
            )
        return None


def abilities_of(config: PretrainedConfig) -> Abilities:
    """Every path of models of this configuration, tested once."""
    tests = {
        "logits": head_fault,
        "packed_rows": packed_fault,
        "padded_rows": padded_fault,
        "kept_prefix": prefix_fault,
        "slots": slots_fault,
        "own_cache": own_cache_fault,
        "gradients": gradient_fault,
        "checkpointing": checkpointing_fault,
        "cut_layers": cut_fault,
    }
    return Abilities(**{field.name: tests[field.name](config) for field in fields(Abilities)})


def config_of(folder: Path) -> PretrainedConfig | None:
    """None where it holds none that transformers reads."""
    with suppress(OSError, ValueError, KeyError):
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    return None


def require_exact(folder: Path, needs: Set[Need], *, named: str) -> None:
    """Raises InputError where no path of the model is exact for what the recipe does with it."""
    config = config_of(folder)
    if config is not None and (refused := abilities_of(config).refusal(needs)) is not None:
        problem, way_out = refused
        raise InputError(f"{named} ({config.model_type}): {problem}", way_out=way_out)
