"""One forward pass in two halves: hidden states of the rows that somebody reads, then the head on those rows alone.

Dimension key: B sequences, L tokens of the longest, T tokens of all, R rows kept, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents, attention_as_now, last_hidden, packs, require_padded
from potstill.models.selftest import Sample, difference, fault_of

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_ROUNDING_FP32, _ROUNDING_HALF = 1e-3, 0.05  # how far logits may be off, of the largest one


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The model's transformer layers, first to last."""
    stacks = [
        module
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    return list(stacks[0])


def hidden_rows(
    model: PreTrainedModel, documents: Documents, at_R: Tensor, *, gradient_checkpointing: bool = False
) -> Tensor:
    """Last hidden states (R, D), final norm applied, of the tokens `at_R` of the documents. With gradient checkpointing
    (Chen et al. 2016) only what each layer reads is kept; a model in training computes its layers once more in the
    backward pass."""
    if gradient_checkpointing:
        if fault := checkpointing_fault(model):
            raise InputError(
                f"the layers of {type(model).__name__} cannot be computed again in the backward pass ({fault})",
                way_out="set train.gradient_checkpointing to false and take fewer train.pass_tokens",
            )
        with _checkpointing(model):
            return last_hidden(model, documents)[at_R]
    if not packs(model):
        return last_hidden(model, documents)[at_R]
    with _sparing(model, at_R):
        return last_hidden(model, documents)[at_R]


def cached_rows(model: PreTrainedModel, ids_BL: Tensor, b_R: Tensor, l_R: Tensor, *, cache: Any) -> Tensor:
    """The same of the positions (b, l) of sequences that go on from `cache`.

    Shorter sequences are padded on the right: under causal attention no real token sees a pad, so no mask is needed.
    Raises InputError for an architecture where that is not so.
    """
    require_padded(model)
    with _sparing(model, b_R * ids_BL.shape[1] + l_R):
        hidden_BLD = model.base_model(
            input_ids=ids_BL, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
    return hidden_BLD[b_R, l_R]


def head_logits(model: PreTrainedModel, hidden_RD: Tensor) -> Tensor:
    """fp32 logits (R, V) of the rows, with the architecture's own scaling and soft-capping."""
    head: Any = model.get_output_embeddings()
    # Head times rows, not rows times head: the head's gradient then comes out in its own memory order, so that
    # adding it to that of tied embeddings is no strided walk.
    logits_RV = (head.weight.float() @ hidden_RD.float().T).T.contiguous()
    if head.bias is not None:
        logits_RV = logits_RV + head.bias.float()
    scale, cap = logit_terms(model)
    if scale != 1:
        logits_RV = logits_RV * scale
    if cap is not None:
        logits_RV = torch.tanh(logits_RV / cap) * cap
    return logits_RV


def logit_terms(model: PreTrainedModel) -> tuple[float, float | None]:
    """What the architecture does to its head's product: a factor (Cohere, Granite, Falcon-H1) and a soft cap (Gemma,
    RecurrentGemma, xLSTM). `head_fault` knows of names that are missing here."""
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    caps = (getattr(config, name, None) for name in _SOFT_CAPS)
    return scale, next((cap for cap in caps if cap is not None), None)


def head_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why hidden states and head do not give the model's own logits; None: they do."""
    return fault_of(model, "logits", _head_fault)


def require_head(model: PreTrainedModel, named: str) -> None:
    """Raises InputError where hidden states and head are not what the model's logits are made of: as its architecture
    is tested, and on a few tokens with the weights that it has."""
    if (fault := head_fault(model)) is None:
        with torch.no_grad():
            ids = torch.tensor([[1, 2, 3]], device=model.device)
            own = model(input_ids=ids, use_cache=False).logits.float()
            ours = head_logits(model, model.base_model(input_ids=ids, use_cache=False)[0].flatten(0, 1))
        off, most = (ours - own[0]).abs().max().item(), own.abs().max().item()
        if off <= max(1.0, most) * (_ROUNDING_FP32 if model.dtype == torch.float32 else _ROUNDING_HALF):
            return
        fault = f"off by {off:.2g} where the largest is {most:.2g}"
    raise InputError(
        f"'{named}' ({type(model).__name__}): its logits are not its head applied to its last hidden states ({fault})",
        way_out="take a model of another architecture, or serve it and let the server score",
    )


def checkpointing_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why layers that are computed again do not give the gradients of plain transformers; None: they do."""
    if isinstance(model, PreTrainedModel) and not model.supports_gradient_checkpointing:
        return "transformers cannot"
    return fault_of(model, "checkpointing", _checkpointing_fault)


def gradient_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """The same of layers that were kept."""
    return fault_of(model, "gradients", lambda sample: _gradients_off(sample, gradient_checkpointing=False))


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Generator[None]:
    # The backward pass comes when the documents' attention is no longer chosen: it has to be, once more.
    model.activation_checkpointing_enable(
        {"use_reentrant": False, "context_fn": lambda: (nullcontext(), attention_as_now(model))}
    )
    model.disable_input_require_grads()  # which only re-entrant checkpoints need
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _head_fault(sample: Sample) -> str | None:
    with torch.no_grad():
        found = [head_logits(sample.model, hidden_LD) for hidden_LD in sample.hidden]
    return difference(torch.cat(found), torch.cat(sample.logits))


def _checkpointing_fault(sample: Sample) -> str | None:
    if not sample.model.supports_gradient_checkpointing:
        return "transformers cannot"
    return _gradients_off(sample, gradient_checkpointing=True)


def _gradients_off(sample: Sample, *, gradient_checkpointing: bool) -> str | None:
    """The gradients of every weight, beside those of texts computed alone."""
    model = sample.model.train(gradient_checkpointing)
    try:
        alone = [model.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0].squeeze(0) for ids in sample.texts]
        wanted = _gradients(model, torch.cat(alone))
        documents = Documents.of(sample.texts, model.device)
        at = [start + i for ids, start in zip(sample.texts, documents.start_S, strict=True) for i in range(len(ids))]
        with _checkpointing(model) if gradient_checkpointing else nullcontext():
            hidden_RD = last_hidden(model, documents)[torch.tensor(at)]
        found = _gradients(model, hidden_RD)
    finally:
        model.eval().zero_grad()
    missing = sorted(wanted.keys() - found.keys())
    faults = (f"{name} is {off}" for name in wanted if (off := difference(found[name], wanted[name])))
    return f"{missing[0]} has no gradient" if missing else next(faults, None)


def _gradients(model: PreTrainedModel, hidden_RD: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    hidden_RD.sin().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _sparing(model: PreTrainedModel, at_R: Tensor) -> AbstractContextManager[None]:
    """The last feed-forward block on the rows alone, where that changes nothing."""
    exact = fault_of(model, "last feed-forward block on some rows", _last_mlp_fault) is None
    return _last_mlp_on_rows(model, at_R) if exact else nullcontext()


def _last_mlp_fault(sample: Sample) -> str | None:
    ids = sample.texts[0]
    at_R = torch.tensor([1, len(ids) // 2, len(ids) - 1])
    with torch.no_grad(), _last_mlp_on_rows(sample.model, at_R):
        hidden_1LD = sample.model.base_model(input_ids=torch.tensor([ids]), use_cache=False)[0]
    return difference(hidden_1LD[0, at_R], sample.hidden[0][at_R])


@contextmanager
def _last_mlp_on_rows(model: PreTrainedModel, at_R: Tensor) -> Generator[None]:
    """Attention needs every position, but what the last feed-forward block makes of a row that nobody reads is lost:
    compute it on the rows alone and leave zeros elsewhere. It is a fifth of a four-layer student's work."""
    mlp = getattr(decoder_layers(model)[-1], "mlp", None)
    if not isinstance(mlp, nn.Module):
        yield
        return
    shape: list[torch.Size] = []

    def pick(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        shape.append(given[0].shape)
        return (given[0].flatten(0, 1)[at_R].unsqueeze(0),)

    def put(_: nn.Module, __: tuple[Tensor], made: Tensor) -> Tensor:
        flat = made.new_zeros((shape[-1][0] * shape[-1][1], shape[-1][2])).index_put((at_R,), made.squeeze(0))
        return flat.view(shape[-1])

    hooks = (mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(put))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
