"""One forward pass in two halves: hidden states of the rows that somebody reads, then the head on those rows alone.

Dimension key: B sequences, L tokens of the longest, T tokens of all, R rows kept, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents, attention_as_now, last_hidden, packs


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
        with _checkpointing(model):
            return last_hidden(model, documents)[at_R]
    if not packs(model):
        return last_hidden(model, documents)[at_R]
    with _last_mlp_on_rows(model, at_R):
        return last_hidden(model, documents)[at_R]


def cached_rows(model: PreTrainedModel, ids_BL: Tensor, b_R: Tensor, l_R: Tensor, *, cache: Any) -> Tensor:
    """The same of the positions (b, l) of sequences that go on from `cache`.

    Shorter sequences are padded on the right: under causal attention no real token sees a pad, so no mask is needed.
    """
    with _last_mlp_on_rows(model, b_R * ids_BL.shape[1] + l_R):
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
    """What the architecture does to its head's product: a factor (Cohere, Granite) and a soft cap (Gemma)."""
    config = model.config
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Generator[None]:
    """Raises InputError for an architecture that transformers cannot checkpoint."""
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"the layers of {type(model).__name__} cannot be computed again in the backward pass",
            way_out="set train.gradient_checkpointing to false and take fewer train.pass_tokens",
        )
    # The backward pass comes when the documents' attention is no longer chosen: it has to be, once more.
    model.activation_checkpointing_enable(
        {"use_reentrant": False, "context_fn": lambda: (nullcontext(), attention_as_now(model))}
    )
    model.disable_input_require_grads()  # which only re-entrant checkpoints need
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


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
