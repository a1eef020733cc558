"""Low-rank adapters inside a model (peft), and the plain model that comes of them.

They are put into the model in place: it keeps its class, and whoever runs, trains or saves it sees no wrapper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.errors import InputError
from potstill.models.forward import decoder_layers
from potstill.recipe.student import Lora

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


@torch.no_grad()
def plain_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that `merged` would leave, by the names of the model without adapters. The model stays as it is."""
    found: dict[str, Tensor] = {}
    layers = dict(model.named_modules())
    for name, value in model.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if ".lora_" in name:
            continue
        plain, adapted, _ = owner.rpartition(".base_layer")
        if not adapted:
            found[name] = value
        elif kind == "weight":
            added: Any = layers[plain]
            found[f"{plain}.{kind}"] = value + added.get_delta_weight(added.active_adapters[0]).to(value.dtype)
        else:
            found[f"{plain}.{kind}"] = value
    return found


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
