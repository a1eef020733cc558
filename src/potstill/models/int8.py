"""Linear maps with weights in int8, for a model that only reads: a byte a number where bf16 takes two.

Dimension key: O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.errors import InputError
from potstill.models.forward import decoder_layers

_LARGEST = 127


class Int8Linear(nn.Module):
    """Symmetric, one fp32 scale per output channel. Integers that small are exact in every dtype of the inputs, so the
    product is taken with them as they are and scaled after it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach().float()
        scale_O = weight_OI.abs().amax(1) / _LARGEST
        divisor_O = torch.where(scale_O == 0, 1, scale_O)  # a channel of zeros
        whole_OI = (weight_OI / divisor_O[:, None]).round().to(torch.int8)
        # Parameters, not buffers: FSDP2 shards those alone.
        self.weight = nn.Parameter(whole_OI, requires_grad=False)
        self.scale = nn.Parameter(scale_O, requires_grad=False)
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        made = F.linear(input, self.weight.to(input.dtype)).mul_(self.scale)  # in fp32, whatever the product's dtype
        return made if self.bias is None else made.add_(self.bias)


def to_int8(model: PreTrainedModel, *, name: str) -> PreTrainedModel:
    """The model, every matrix of its layers replaced in place; embeddings, norms and head stay as they are. Raises
    InputError where layers keep matrices elsewhere than in `nn.Linear` (GPT-2, most mixtures of experts)."""
    layers = decoder_layers(model)
    for layer in layers:
        linear = {f"{path}.weight" for path, module in layer.named_modules() if type(module) is nn.Linear}
        for path, parameter in layer.named_parameters():
            if parameter.ndim > 1 and path not in linear:
                kind = model.config.model_type
                raise InputError(
                    f"'{name}' cannot be read in int8: '{path}' of its layers ({kind}) is no nn.Linear",
                    way_out="leave 'train.scored_by.quantization' out, or take another model",
                )
    for layer in layers:
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(path, Int8Linear(module))
    return model
