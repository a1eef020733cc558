"""Low-rank adapters inside a model (peft), and the plain model that comes of them.

They are put into the model in place: it keeps its class, and whoever runs, trains or saves it sees no wrapper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.errors import InputError
from potstill.models.forward import decoder_layers
from potstill.student_recipe import Lora

if TYPE_CHECKING:
    from peft import LoraModel


def adapt(model: PreTrainedModel, lora: Lora, *, seed: int) -> LoraModel:
    """Give the model adapters that change nothing yet; they alone bear gradients from here on. What is random of them
    is a pure function of `seed`. Raises InputError where the model has no such targets."""
    from peft import LoraConfig, LoraModel  # the extra `lora`

    targets = _targets(model, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),  # its weight is transposed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(model, config, "default")


def merged(adapted: LoraModel) -> PreTrainedModel:
    """The model that `adapt` was given, with what its adapters add in its weights and without them."""
    return adapted.merge_and_unload()  # pyright: ignore[reportReturnType]


def _targets(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Full names of the linear maps inside the layers. The head is none of them: the losses read its weight directly,
    and where it is tied to the embeddings an adapter would part the two."""
    names = {module: name for name, module in model.named_modules()}
    found = [
        names[module]
        for layer in decoder_layers(model)
        for module in layer.modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    known = dict.fromkeys(name.rpartition(".")[2] for name in found)
    if strange := next((target for target in wanted or () if target not in known), None):
        raise InputError(
            f"student.lora.targets names '{strange}', but the student's layers have no such linear map",
            way_out=f"choose from {', '.join(known)}",
        )
    return [name for name in found if wanted is None or name.rpartition(".")[2] in wanted]
