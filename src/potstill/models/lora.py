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


_OTHERWISE = ("Router", "GroupedLinear")
"""Classes of linear maps that return something else than a map does."""


def adapt(model: PreTrainedModel, lora: Lora, *, seed: int) -> LoraModel:
    """Give the model adapters that change nothing yet; they alone bear gradients from here on. What is random of them
    is a pure function of `seed`. Raises InputError where the model has no such targets."""
    from peft import LoraConfig, LoraModel  # the extra `lora`

    maps, experts = _targets(model, lora.targets)
    rank: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha}
    configs: dict[str, LoraConfig] = {}
    if maps:
        transposed = isinstance(model.get_submodule(maps[0]), Conv1D)
        configs["default"] = LoraConfig(
            **rank, lora_dropout=lora.dropout, target_modules=maps, fan_in_fan_out=transposed
        )
    if experts:  # peft cannot drop out what goes into them
        configs["experts"] = LoraConfig(**rank, target_modules=[], target_parameters=experts)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            (first, config), *others = configs.items()
            adapted = LoraModel(model, config, first)
            for name, config in others:
                adapted.peft_config[name] = config
                adapted.inject_adapter(model, name)
    except ValueError as error:
        raise InputError(
            f"student.lora does not fit a {model.config.model_type} model: {error}", way_out="name student.lora.targets"
        ) from None
    adapted.set_adapter(list(configs))
    return adapted


def merged(adapted: LoraModel) -> PreTrainedModel:
    """The model that `adapt` was given, with what its adapters add in its weights and without them."""
    return adapted.merge_and_unload()  # pyright: ignore[reportReturnType]


@torch.no_grad()
def plain_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that `merged` would leave, by the names of the model without adapters. The model stays as it is."""
    added: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if hasattr(layer, "get_delta_weight"):
            adapter = next(iter(layer.lora_A))
            of = getattr(layer, "parameter_name", "weight")
            added[f"{_plain(name)}.{of}"] = layer.get_delta_weight(adapter)
    found = {_plain(name): value for name, value in model.state_dict().items() if ".lora_" not in name}
    return {name: value + added[name].to(value.dtype) if name in added else value for name, value in found.items()}


def unmoved(model: PreTrainedModel) -> float:
    """The share of the layers' weights that none of its adapters moves."""
    inside = [module for layer in decoder_layers(model) for module in layer.modules()]
    moved = 0
    for module in inside:
        layer: Any = module
        if hasattr(layer, "get_delta_weight"):
            moved += getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight")).numel()
    layers = (p for layer in decoder_layers(model) for name, p in layer.named_parameters() if ".lora_" not in name)
    return 1 - moved / sum(parameter.numel() for parameter in layers)


def _plain(name: str) -> str:
    """As it is called without adapters: they may lie in one another."""
    return name.replace(".base_layer", "")


def _targets(model: PreTrainedModel, wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Full names of the linear maps inside the layers, and of the matrices that hold the experts of a mixture side by
    side (all of them one parameter). The head is none of them: the losses read its weight directly, and where it is
    tied to the embeddings an adapter would part the two."""
    names = {module: name for name, module in model.named_modules()}
    inside = [module for layer in decoder_layers(model) for module in layer.modules()]
    maps = [names[m] for m in inside if isinstance(m, nn.Linear | Conv1D) and not type(m).__name__.endswith(_OTHERWISE)]
    experts = [
        f"{names[module]}.{name}"
        for module in inside
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and not type(module).__module__.startswith("torch.nn")
    ]
    known = dict.fromkeys(name.rpartition(".")[2] for name in (*maps, *experts))
    if strange := next((target for target in wanted or () if target not in known), None):
        raise InputError(
            f"student.lora.targets names '{strange}', but the student's layers have no such linear map",
            way_out=f"choose from {', '.join(known)}",
        )
    if not known:
        raise InputError("the student's layers have no linear maps for student.lora", way_out="leave it out")
    return _named(maps, wanted), _named(experts, wanted)


def _named(found: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    return [name for name in found if wanted is None or name.rpartition(".")[2] in wanted]
