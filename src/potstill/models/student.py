"""Students made from a teacher: its first layers, or the same shape with random weights."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from potstill.errors import InputError
from potstill.models.forward import decoder_layers


def first_layers(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A new fp32 model with the teacher's embeddings, first `layers` layers, final norm and head. Shares no memory."""
    student = _blank(_cut(teacher.config, layers))
    wanted = student.state_dict().keys()
    weights = {name: value.float() for name, value in teacher.state_dict().items() if name in wanted}
    student.load_state_dict(weights)
    return student.eval()


def freeze(student: PreTrainedModel, *, embeddings: bool, layers: int) -> None:
    """Keep its embeddings (and its head where they are tied) and its first `layers` layers as they are."""
    student.get_input_embeddings().requires_grad_(not embeddings)
    for layer in decoder_layers(student)[:layers]:
        layer.requires_grad_(False)


def random_weights(teacher: PreTrainedModel, layers: int, *, seed: int) -> PreTrainedModel:
    """The same shape as `first_layers`, initialised as the architecture prescribes; a pure function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _blank(_cut(teacher.config, layers)).eval()


def _blank(config: PretrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    if not 1 <= layers <= config.num_hidden_layers:
        raise InputError(
            f"student.layers is {layers}, but the teacher has {config.num_hidden_layers} layers",
            way_out=f"choose 1 to {config.num_hidden_layers}",
        )
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layers
    if getattr(cut, "layer_types", None):
        cut.layer_types = cut.layer_types[:layers]
    return cut
