"""Packed weights give the products of plain ones, and leave the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.engines.row_logits import row_logits
from potstill.models.packed import packed


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Wide enough that its feed-forward layers and its tied head are packed, and its attention is not."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=256, intermediate_size=640, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    made: Any = LlamaForCausalLM(config)
    return made.eval()


def plain_again(model: LlamaForCausalLM) -> bool:
    return all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
def test_the_same_logits_from_the_layers_that_are_worth_it(model: LlamaForCausalLM, rows: int) -> None:
    ids = torch.randint(0, 600, (rows, 5), generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        hidden = model.model(input_ids=ids).last_hidden_state
        want = row_logits(model, hidden[:, -1])
        with packed(model):
            changed = {name for name, module in model.named_modules() if "forward" in vars(module)}
            found = row_logits(model, model.model(input_ids=ids).last_hidden_state[:, -1])
    mlp = {f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")}
    assert changed == {"lm_head", *mlp}
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert plain_again(model)


def test_weights_are_read_as_they_are_when_it_begins(model: LlamaForCausalLM) -> None:
    x = torch.randn(2, 256)
    head: Any = model.lm_head
    with torch.no_grad():
        head.weight.mul_(2)
        want = head(x)
        with packed(model):
            torch.testing.assert_close(head(x), want)
        head.weight.mul_(0.5)
        with packed(model):
            torch.testing.assert_close(head(x), want / 2)


def test_the_model_is_plain_again_after_an_error_and_learns(model: LlamaForCausalLM) -> None:
    with pytest.raises(KeyError), packed(model):
        raise KeyError
    assert plain_again(model)
    ids = torch.arange(6).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()


def test_half_precision_is_left_alone(model: LlamaForCausalLM) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), packed(model):
        assert plain_again(model)
    half: Any = LlamaForCausalLM(model.config).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    with packed(half):
        assert plain_again(half)
