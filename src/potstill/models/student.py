"""Students made from a model: some of its layers, or the same shape with random weights.

Dimension key: T tokens, S documents, L tokens of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents, last_hidden, packs
from potstill.models.forward import decoder_layers
from potstill.models.selftest import Sample, difference, fault_of
from potstill.models.text_model import text_model
from potstill.models.tiny import cut_layers, layer_facts
from potstill.recipe.student import Layers, Ranked, Spaced


def take_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new fp32 model of the layers with these indices, in this order, between the model's own embeddings, final norm
    and head. Shares no memory. Raises InputError where a layer would not do in its new place what it does now."""
    if list(layers) != list(range(model.config.num_hidden_layers)) and (fault := cut_fault(model)):
        raise InputError(
            f"student.layers is {list(layers)}, but the layers of a {model.config.model_type} model do not "
            f"compute in a shorter one what they do now ({fault})",
            way_out="take all layers",
        )
    return _taken(model, layers)


def cut_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why a model of its first layers, as it is cut or loaded again, is not the model with the others left out."""
    return fault_of(model, "cut layers", _cut_fault)


def _cut_fault(sample: Sample) -> str | None:
    layers, ids = decoder_layers(sample.model), torch.tensor([sample.texts[0]])
    hooks = [layer.register_forward_hook(_skipped, with_kwargs=True) for layer in layers[-1:]]
    try:
        with torch.no_grad():
            wanted = sample.model.base_model(input_ids=ids, use_cache=False)[0]
            cut = _taken(sample.model, range(len(layers) - 1))
            saved = _blank(AutoConfig.for_model(**cut.config.to_dict())).eval()
            saved.load_state_dict(cut.state_dict())
            found = (model.base_model(input_ids=ids, use_cache=False)[0] for model in (cut, saved))
            return next((off for hidden_1LD in found if (off := difference(hidden_1LD, wanted))), None)
    except InputError:
        return None  # refused by itself, layer by layer
    finally:
        for hook in hooks:
            hook.remove()


def _skipped(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], made: Any) -> Any:
    """What a layer that is not there hands on."""
    before = args[0] if args else named["hidden_states"]
    return (before, *made[1:]) if isinstance(made, tuple) else before


def _taken(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    student = _blank(_cut(model.config, layers))
    try:
        student.load_state_dict(_outside_layers(model), strict=False)
        for new, old in zip(decoder_layers(student), _picked(model, layers), strict=True):
            new.load_state_dict(old.state_dict())
            if layer_facts(new) != layer_facts(old):
                raise ValueError
    except (RuntimeError, ValueError):
        kind = model.config.model_type
        raise InputError(
            f"student.layers is {list(layers)}, but a layer of a {kind} model is made for its own place",
            way_out="take the first so many layers, or all",
        ) from None
    return student.eval()


def first_layers(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A new fp32 model with the teacher's embeddings, first `layers` layers, final norm and head. Shares no memory."""
    return take_layers(teacher, _first(teacher.config, layers))


def random_weights(model: PreTrainedModel, layers: Sequence[int], *, seed: int) -> PreTrainedModel:
    """The shape of `take_layers`, initialised as the architecture prescribes; a pure function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _blank(_cut(model.config, layers)).eval()


def freeze(student: PreTrainedModel, *, embeddings: bool, layers: int) -> None:
    """Keep its embeddings (and its head where they are tied) and its first `layers` layers as they are."""
    student.get_input_embeddings().requires_grad_(not embeddings)
    for layer in decoder_layers(student)[:layers]:
        layer.requires_grad_(False)


def choose_layers(model: PreTrainedModel, wanted: Layers | None, sample: Iterable[Documents]) -> tuple[int, ...]:
    """Indices of the layers that the recipe asks for; only `Ranked` reads the sample. Raises InputError."""
    match wanted:
        case None:
            return tuple(range(model.config.num_hidden_layers))
        case tuple():
            return wanted
        case Spaced(spaced=count):
            return spaced(model.config.num_hidden_layers, count)
        case Ranked(ranked=count):
            return ranked_layers(model, sample, count)
        case _:
            return _first(model.config, wanted)


def spaced(of: int, count: int) -> tuple[int, ...]:
    """`count` of `of` layers, evenly spaced: the first always in, and the last where there are two or more."""
    _require(count, of)
    return tuple(round(i * (of - 1) / max(count - 1, 1)) for i in range(count))


def ranked_layers(model: PreTrainedModel, sample: Iterable[Documents], count: int) -> tuple[int, ...]:
    """The `count` layers of the greatest influence, ascending; of equal ones, the earlier."""
    _require(count, model.config.num_hidden_layers)
    influence = block_influence(model, sample)
    return tuple(sorted(sorted(range(len(influence)), key=lambda layer: -influence[layer])[:count]))


@torch.inference_mode()
def block_influence(model: PreTrainedModel, sample: Iterable[Documents]) -> list[float]:
    """1 - cosine similarity of what goes into each layer and what comes out, mean over the tokens (Block Influence; Men
    et al. 2024, ShortGPT)."""
    layers, tokens = decoder_layers(model), 0
    sums = [0.0] * len(layers)
    for documents in sample:
        real_SL = None if packs(model) else _real(documents)
        hooks = [
            layer.register_forward_hook(_Watched(sums, at, real_SL), with_kwargs=True)
            for at, layer in enumerate(layers)
        ]
        try:
            last_hidden(model, documents)
        finally:
            for hook in hooks:
                hook.remove()
        tokens += len(documents.ids_T)
    return [1 - total / max(tokens, 1) for total in sums]


class _Watched:
    """Adds a layer's cosine similarities to the sums. Padding is left out where there is any."""

    def __init__(self, sums: list[float], at: int, real_SL: Tensor | None) -> None:
        self._sums, self._at, self._real_SL = sums, at, real_SL

    def __call__(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        before_SLD: Tensor = args[0] if args else named["hidden_states"]
        after_SLD: Tensor = made[0] if isinstance(made, tuple) else made
        alike_SL = cosine_similarity(before_SLD.float(), after_SLD.float(), dim=-1)
        self._sums[self._at] += (alike_SL if self._real_SL is None else alike_SL[self._real_SL]).sum().item()


def _real(documents: Documents) -> Tensor:
    length_S1 = torch.tensor(documents.lengths, device=documents.device).unsqueeze(1)
    return torch.arange(documents.lengths[-1], device=documents.device) < length_S1


def _blank(config: PretrainedConfig) -> PreTrainedModel:
    return text_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), name=config.model_type)


def _cut(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    before = config.num_hidden_layers
    if strange := [layer for layer in layers if not 0 <= layer < before]:
        raise InputError(
            f"student.layers names layer {strange[0]}, but the model it starts from has {before} layers",
            way_out=f"choose from 0 to {before - 1}",
        )
    return cut_layers(config, layers)


def _outside_layers(model: PreTrainedModel) -> dict[str, Tensor]:
    first = decoder_layers(model)[0]
    stack = next(name for name, module in model.named_modules() if module is first).removesuffix(".0")
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{stack}.")}


def _picked(model: PreTrainedModel, layers: Sequence[int]) -> list[nn.Module]:
    every = decoder_layers(model)
    return [every[layer] for layer in layers]


def _first(config: PretrainedConfig, layers: int) -> tuple[int, ...]:
    _require(layers, config.num_hidden_layers)
    return tuple(range(layers))


def _require(layers: int, of: int) -> None:
    if not 1 <= layers <= of:
        raise InputError(f"student.layers is {layers}, but the teacher has {of} layers", way_out=f"choose 1 to {of}")
