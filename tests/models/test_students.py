"""Layers taken from a model: the right ones, whole, in their order; and which they should be."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents, packs
from potstill.models.student import block_influence, ranked_layers, spaced, take_layers
from potstill.recipe.student import Student, spoken_layers

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"use_sliding_window": True, "max_window_layers": 3, **SLIDING}),
    "gemma2": ("gemma2", SLIDING),
    "gemma3": ("gemma3_text", SLIDING),
}


def model_of(kind: str) -> PreTrainedModel:
    architecture, more = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**TINY, **more})).eval()
    for layer in model.model.layers:  # untrained layers hardly change their input
        for parameter in layer.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


def ids() -> Tensor:
    return torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(1))


def by_hand(model: PreTrainedModel, layers: set[int]) -> Tensor:
    """Logits of the model whose other layers hand on what they are given."""
    skipping = copy.deepcopy(model)
    for at, layer in enumerate(skipping.model.layers):
        if at not in layers:
            layer.forward = lambda hidden_states, *_, **__: hidden_states
    return skipping(ids(), use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("kind", list(KINDS))
def test_all_layers_are_the_model_and_a_list_is_those_layers_by_hand(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    torch.testing.assert_close(take_layers(model, range(6))(ids()).logits, model(ids()).logits)
    some = take_layers(model, (0, 2, 3, 5))
    expected = by_hand(model, {0, 2, 3, 5})
    assert not torch.allclose(expected, model(ids()).logits, atol=1e-2)
    torch.testing.assert_close(some(ids()).logits, expected)
    torch.testing.assert_close(some.generate(ids(), max_new_tokens=3, do_sample=False)[:, :11], ids())
    some.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids()).logits, expected)
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == (kind != "llama, untied")
    config = json.loads((tmp_path / "config.json").read_text())
    if kind not in ("llama", "llama, untied"):
        assert config["layer_types"] == [SLIDING["layer_types"][i] for i in (0, 2, 3, 5)]  # pyright: ignore


@torch.no_grad()
def test_layers_come_in_the_order_of_the_list() -> None:
    model = model_of("llama")
    turned = copy.deepcopy(model)
    turned.model.layers = nn.ModuleList([turned.model.layers[i] for i in (4, 1)])
    turned.config.num_hidden_layers = 2
    student = take_layers(model, (4, 1))
    torch.testing.assert_close(student(ids()).logits, turned(ids(), use_cache=False).logits)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]


def test_a_students_weights_are_its_own() -> None:
    model = model_of("gemma2")
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not theirs & {p.data_ptr() for p in take_layers(model, (1, 5)).parameters()}


def test_a_layer_that_would_do_something_else_in_its_new_place_is_refused() -> None:
    """DeepSeek's first layers are dense by their number alone, and the others mixtures."""
    more = {"num_hidden_layers": 4, "first_k_dense_replace": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
    more |= {"n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "n_shared_experts": 1}
    more |= {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    sizes = {k: v for k, v in TINY.items() if k != "head_dim"} | {"num_key_value_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **{**sizes, **more})).eval()
    assert take_layers(model, (0, 1, 3)).config.num_hidden_layers == 3
    with pytest.raises(InputError, match=r"student\.layers is \[0, 3\].*deepseek_v3.*made for its own place"):
        take_layers(model, (0, 3))


def test_a_layer_that_the_model_has_not_is_named() -> None:
    with pytest.raises(
        InputError, match="names layer 6, but the model it starts from has 6 layers; choose from 0 to 5"
    ):
        take_layers(model_of("llama"), (0, 6))


@given(of=st.integers(1, 200), data=st.data())
def test_spaced_layers_hold_both_ends_and_equal_steps(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, of))
    layers = spaced(of, count)
    assert len(layers) == count and layers[0] == 0
    if count > 1:
        steps = [b - a for a, b in pairwise(layers)]
        assert layers[-1] == of - 1 and min(steps) >= 1 and max(steps) - min(steps) <= 1


def test_more_spaced_or_ranked_layers_than_there_are_are_refused() -> None:
    with pytest.raises(InputError, match=r"student\.layers is 7, but the teacher has 6 layers"):
        spaced(6, 7)
    with pytest.raises(InputError, match=r"student\.layers is 7, but the teacher has 6 layers"):
        ranked_layers(model_of("llama"), [], 7)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3"])
def test_influence_is_that_of_every_text_alone(kind: str) -> None:
    """By definition, from `output_hidden_states` of one text at a time; packed and padded texts give the same."""
    model, texts = model_of(kind), [tuple(range(3, 3 + n)) for n in (4, 9, 17, 30)]
    assert packs(model) == (kind != "gemma2")
    sums, tokens = torch.zeros(5, dtype=torch.float64), 0
    with torch.no_grad():
        for text in texts:
            hidden = model(torch.tensor([text]), output_hidden_states=True).hidden_states
            for at, (before, after) in enumerate(pairwise(hidden[:-1])):  # the last one has been normed
                sums[at] += (1 - torch.cosine_similarity(before.double(), after.double(), dim=-1)).sum()
            tokens += len(text)
    device = torch.device("cpu")
    found = block_influence(model, [Documents.of(texts[:3], device), Documents.of(texts[3:], device)])
    assert found[:5] == pytest.approx((sums / tokens).tolist(), rel=1e-3) and len(found) == 6


def test_layers_that_change_nothing_go_first_and_of_equals_the_later() -> None:
    model = model_of("llama")
    for at in (1, 4, 5):
        layer = model.model.layers[at]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    sample = [Documents.of([tuple(range(3, 40))], torch.device("cpu"))]
    assert ranked_layers(model, sample, 3) == (0, 2, 3)
    assert ranked_layers(model, sample, 4) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("layers", "of", "said"),
    [
        ((0, 1, 2), 30, "the first 3 of 30 layers"),
        ((0, 1, 2), None, "the first 3 layers"),
        ((0, 1, 2), 3, "all 3 layers"),
        ((0, 4, 9), 10, "the layers 0, 4 and 9 (counted from 0) of 10"),
        ((2,), 4, "the layer 2 (counted from 0) of 4"),
    ],
)
def test_layers_in_words(layers: tuple[int, ...], of: int | None, said: str) -> None:
    assert spoken_layers(layers, of) == said


@pytest.mark.parametrize(
    ("layers", "taken"), [("null", None), ("3", 3), ("[5, 2]", 2), ('{"spaced": 4}', 4), ('{"ranked": 1}', 1)]
)
def test_a_recipe_says_layers_in_five_ways_and_comes_back(layers: str, taken: int | None) -> None:
    learner = Student.model_validate_json(f'{{"start": "a/b", "licence": "mit", "layers": {layers}}}')
    assert learner.taken == taken
    assert Student.model_validate_json(learner.model_dump_json()) == learner
    assert learner.model_copy(update={"layers": learner.layers}) == learner
