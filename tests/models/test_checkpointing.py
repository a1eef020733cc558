"""Layers that are computed again in the backward pass give the gradients of layers that were kept, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shaped import config_of
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents, last_hidden, packs
from potstill.models.forward import hidden_rows
from potstill.models.lora import adapt
from potstill.models.shapes import Shape
from potstill.recipe.student import Lora

TOKENS = Documents.of([tuple(range(1, 1 + n)) for n in (3, 9, 20, 21)], torch.device("cpu"))
READ = torch.tensor([2, 5, 11, 40, 52])


def made(architecture: str, lora: Lora | None = None, **changes: Any) -> PreTrainedModel:
    shape = Shape(
        architecture=architecture, layers=3, width=32, heads=4, kv_heads=2, head_width=8, inner=48, vocabulary=60,
        tied=architecture != "qwen2", biased=architecture == "qwen2",
    )  # fmt: skip
    config = config_of(shape)
    config.update(changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if lora is not None:
        adapt(model, lora, seed=0)
    return model.train()


def gradients(model: PreTrainedModel, hidden_RD: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    hidden_RD.sin().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("architecture", "lora", "changes"),
    [
        ("llama", None, {}),
        ("qwen3", Lora(rank=2, alpha=4, dropout=0.3), {}),
        ("gemma3_text", None, {"sliding_window": 4}),
        ("gemma2", None, {"attn_logit_softcapping": 20.0}),  # attention of its own: padded rows
    ],
)
def test_the_same_gradients(architecture: str, lora: Lora | None, changes: dict[str, Any], half: bool) -> None:
    model = made(architecture, lora, **changes)
    assert packs(model) == (architecture != "gemma2")
    found: list[dict[str, Tensor]] = []
    for again in (False, True):
        torch.manual_seed(1)  # what drops out
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            if again:
                hidden_RD = hidden_rows(model, TOKENS, READ, gradient_checkpointing=True)
            else:
                hidden_RD = last_hidden(model, TOKENS)[READ]
        found.append(gradients(model, hidden_RD))
    kept, computed = found
    assert kept.keys() == computed.keys() and len(kept) > 8
    assert all(torch.equal(kept[name], computed[name]) for name in kept)


def test_frozen_layers_below_cost_nothing_and_nothing_stays_behind() -> None:
    model = made("llama")
    model.get_input_embeddings().weight.requires_grad_(False)
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    calls = list[int]()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    grown = gradients(model, hidden_rows(model, TOKENS, READ, gradient_checkpointing=True))
    assert calls == [0, 1, 2, 2, 1]
    assert not any("layers.0." in name for name in grown)
    assert not model.is_activation_checkpointing


def test_an_architecture_that_cannot_is_refused() -> None:
    model: Any = made("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match="LlamaForCausalLM cannot be computed again in the backward pass"):
        hidden_rows(model, TOKENS, READ, gradient_checkpointing=True)
