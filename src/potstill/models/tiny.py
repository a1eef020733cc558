"""A tiny random model of a configuration: every kind of layer and every multiplier kept, sizes cut.

Widths are divided by one power of two, so that those that follow from others still do; numbers of heads, experts,
states, tokens in the vocabulary and in windows are cut as far as they are free.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from potstill.models.text_model import text_model

VOCABULARY = 64
_WINDOW, _CHUNK, _STATES, _EXPERTS = 6, 8, 16, 8
_LEAST_WIDTH, _LEAST_HEAD, _LEAST_HEADS = 32, 8, 8
_MOST_NUMBERS = 50_000_000  # parameters of a tiny model: more of them take too long
_LAYERS = 24

_WIDTH = re.compile(
    r"hidden_size\w*|n_embd|d_model|embedding_(dim|size)|\w*head_?dim|\w*d_head|lru_width|\w*lora_rank|rotary_dim|"
    r"mamba_d_ssm|kv_channels|attention_hidden_size|word_embed_proj_dim|(qk|v)_\w+_dim"
)
_INNER = re.compile(r"\w*intermediate_size\w*|n_inner|\w*ffn_\w*(dim|size)|block_ff_dim|\w*(dt|time_step|laurel)_rank")
_MOST: Mapping[str, int] = {
    r"vocab_size\w*": VOCABULARY,
    r"(attention_|keep_)?(sliding_)?window(_size|_len)?|local_attention(_window_len)?": _WINDOW,
    r"attention_chunk_size|index_topk": _WINDOW,
    r"(mamba_)?chunk_size|block_size": _CHUNK,
    r"mamba_d_state|(ssm_)?state_size": _STATES,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NO_FACTS = {"layer_idx", "layer_id", "training", "gradient_checkpointing"}


def tiny(config: PretrainedConfig) -> PreTrainedModel:
    """In fp32, in evaluation mode, on the CPU; weights are drawn from the caller's random numbers. Raises what
    transformers raises where even the whole widths give no model."""
    factor, first, fewer_heads = _largest_factor(config), None, True
    while True:
        try:
            model = _made(_narrow(config, factor, fewer_heads=fewer_heads))
            with torch.no_grad():
                model(input_ids=torch.arange(3, 10).unsqueeze(0), use_cache=False)
        except Exception as error:  # some number that belongs to another one
            first = first or error
            if factor == 1 or isinstance(error, OverflowError):
                raise first from None
            factor, fewer_heads = factor if fewer_heads else factor // 2, False
        else:
            return model


def cut_layers(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """The configuration of these layers: what it lists layer by layer (`layer_types`, `no_rope_layers`) goes along."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(layers)
    for name, value in _listed(config).items():
        setattr(cut, name, [value[layer] for layer in layers])
    if shared := getattr(config, "num_kv_shared_layers", 0):
        cut.num_kv_shared_layers = max(0, shared - (config.num_hidden_layers - len(layers)))
    if before := dict(_overrides(cut)):
        _overrides(cut).clear()
        _overrides(cut).update({at: before[layer] for at, layer in enumerate(layers) if layer in before})
    return cut


def layer_facts(layer: nn.Module) -> dict[str, object]:
    """What a layer's modules are set to do, but for where they stand: kind of attention, window, rotary or not."""
    return {
        f"{name}.{key}": value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None) and key not in _NO_FACTS
    }


def _made(small: PretrainedConfig) -> PreTrainedModel:
    """With one layer of each kind."""
    with torch.device("meta"), no_init_weights():
        whole = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    for name, part in [("", small), *((name, getattr(small, name)) for name in small.sub_configs)]:
        if getattr(part, "num_hidden_layers", 0):
            text = part is small.get_text_config()
            part = cut_layers(part, range(_needed(whole, part) if text else 1))
            small = part if not name else small
            if name:
                setattr(small, name, part)
    with torch.device("meta"), no_init_weights():
        numbers = sum(p.numel() for p in AutoModelForCausalLM.from_config(small, dtype=torch.float32).parameters())
    if numbers > _MOST_NUMBERS:
        raise OverflowError(f"{numbers:,} parameters are too many for a self-test")
    small._attn_implementation = None  # pyright: ignore[reportPrivateUsage]  # transformers chooses, not the caller
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    _sharpen(model)
    return text_model(model.eval(), name=small.model_type)


def _needed(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """The first so many layers hold one of each kind."""
    count = config.num_hidden_layers
    stacks = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    listed = [value for value in _listed(config).values() if len(set(map(repr, value))) < count]
    kinds = [
        repr((sorted(layer_facts(layer).items()), [(n, type(m)) for n, m in layer.named_modules()], values))
        for layer, *values in zip(stacks[0] if stacks else [nn.Module()] * count, *listed, strict=True)
    ]
    return min(count, _LAYERS, max(2, *(kinds.index(kind) + 1 for kind in kinds)))


def _narrow(config: PretrainedConfig, factor: int, *, fewer_heads: bool) -> PretrainedConfig:
    """The configuration with its widths divided by `factor`, and its heads by what is free."""
    narrow = copy.deepcopy(config)
    inner = factor if "expand" in vars(config) else 4 * factor  # a state-space block's follows from its width
    heads, fewer = _heads(config)
    for name, value in vars(config).items():
        if _WIDTH.fullmatch(name):
            setattr(narrow, name, _divided(value, factor))
        elif _INNER.fullmatch(name) and factor > 1:
            setattr(narrow, name, _divided(value, inner, least=8))
        elif name in heads and fewer_heads and factor > 1:
            setattr(narrow, name, max(1, value // fewer))
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PretrainedConfig):
            setattr(narrow, name, _narrow(part, factor, fewer_heads=fewer_heads))
    _cut_special(narrow, factor)
    _cut_numbers(narrow)
    _cut_experts(narrow)
    return narrow


def _cut_special(config: PretrainedConfig, factor: int) -> None:
    """Widths of some layers alone, and a factor for each of the angles that positions turn a head by."""
    for overrides in _overrides(config).values():
        overrides.update({name: _divided(value, factor) for name, value in overrides.items() if _WIDTH.fullmatch(name)})
    rope = vars(config).get("rope_parameters") or {}
    for name in {"long_factor", "short_factor"} & rope.keys():
        rope[name] = rope[name][: len(rope[name]) // factor]


def _cut_numbers(config: PretrainedConfig) -> None:
    """Vocabulary, windows, chunks and states at most so large; no dropout; the ids of special tokens."""
    for name, value in list(vars(config).items()):
        most = next((most for pattern, most in _MOST.items() if re.fullmatch(pattern, name)), None)
        if isinstance(value, int) and most is not None and (value > most or most == VOCABULARY):
            setattr(config, name, most)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
        elif name in _TOKENS and value is not None:
            setattr(config, name, _TOKENS[name])


def _heads(config: PretrainedConfig) -> tuple[set[str], int]:
    """Numbers of heads that may be divided, and by how much: where the rows' width does not follow from them."""
    known = vars(config)
    names = {"num_attention_heads", "num_key_value_heads", "index_n_heads"} & known.keys()
    found = {name: known[name] for name in names if isinstance(known[name], int)}
    many, fewer = [count for count in found.values() if count > 1], 1
    if known.get("head_dim") or known.get("v_head_dim"):
        while many and max(many) >= 2 * _LEAST_HEADS * fewer and all(count % (2 * fewer) == 0 for count in many):
            fewer *= 2
    return set(found), fewer


def _cut_experts(config: PretrainedConfig) -> None:
    def largest(*names: str) -> int:
        found = [vars(config).get(name) for name in names]
        return max((value for value in found if isinstance(value, int)), default=0)

    chosen = largest("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    most = max(_EXPERTS, 2 * chosen, 2 * largest("n_group", "num_expert_group"))
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if chosen and largest(name) > most:
            setattr(config, name, most)


def _divided(value: Any, factor: int, least: int = 1) -> Any:
    """A multiple of `least`, and at least that."""
    if isinstance(value, list):
        return [_divided(one, factor, least) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return max(least, value // factor // least * least) if isinstance(value, int) and value > least else value


def _largest_factor(config: PretrainedConfig) -> int:
    """The largest power of two that divides every width and leaves heads of 8, rows of 32."""
    known = vars(config.get_text_config())
    widths = [value for name, value in known.items() if _WIDTH.fullmatch(name) and isinstance(value, int)]
    heads = known.get("num_attention_heads") or known.get("n_head") or 1
    width = known.get("hidden_size") or known.get("n_embd") or known.get("d_model") or max(widths, default=1)
    head = known.get("head_dim") or width // heads
    factor = 1
    while (
        all(value % (2 * factor) == 0 for value in widths)
        and width // (2 * factor) >= _LEAST_WIDTH
        and head // (2 * factor) >= _LEAST_HEAD
    ):
        factor *= 2
    return factor


def _listed(config: PretrainedConfig) -> dict[str, list[Any]]:
    """What it says of each layer. In a short model a list that names none may be as long by chance."""
    count = config.num_hidden_layers
    return {
        name: list(value)  # pyright: ignore[reportUnknownArgumentType]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == count  # pyright: ignore[reportUnknownArgumentType]
        and ("layer" in name or count > len(_TOKENS))
        and "token" not in name
    }


def _overrides(config: PretrainedConfig) -> dict[int, dict[str, Any]]:
    """What some layers have otherwise than the others (Gemma 4)."""
    spec: Any = vars(config).get("_heterogeneity_spec")
    return {} if spec is None else spec.per_layer_overrides


@torch.no_grad()
def _sharpen(model: PreTrainedModel) -> None:
    """Weights of the size that keeps activations near 1, and nothing at its neutral value: so that a mistake shows."""
    draw = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight += 0.3 * torch.randn(weight.shape, generator=draw)
        elif "A_log" not in name and (spread := weight.std()) > 0:
            weight *= (weight.shape[-1] if weight.dim() < 3 else weight[0].numel() ** 0.5) ** -0.5 / spread
