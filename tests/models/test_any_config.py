"""A model folder is known at `check` whatever its config.json calls things, and loads as what it is: with all of its
weights, as a model of text, in plain numbers. Else it is refused before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.errors import InputError
from potstill.models.config import positions_of
from potstill.models.documents import Documents
from potstill.models.forward import head_logits, hidden_rows
from potstill.models.load import load
from potstill.models.locate import facts, locate, read_json
from potstill.models.student import take_layers

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 40,
}  # fmt: skip
EYES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
IDS = torch.arange(5, 25).unsqueeze(0)


def saved(folder: Path, kind: str, **values: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


def rewrite(folder: Path, weights: dict[str, Tensor], **config: Any) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("gpt2", GPT2),
        ("gptj", {**GPT2, "rotary_dim": 4}),
        ("gpt_neo", {"vocab_size": 64, "hidden_size": 32, "num_layers": 3, "num_heads": 4,
                     "attention_types": [[["global", "local", "global"], 1]], "max_position_embeddings": 40}),
        ("xglm", {"vocab_size": 64, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48,
                  "max_position_embeddings": 40}),
        ("mpt", {"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 40}),
        ("llama", TEXT),
    ],
)  # fmt: skip
def test_facts_are_those_of_the_loaded_model(kind: str, values: dict[str, Any], tmp_path: Path) -> None:
    model, found = saved(tmp_path, kind, **values), facts(locate(str(tmp_path)))
    assert found is not None
    assert (found.layers, found.hidden, found.vocabulary) == (3, 32, 64)
    assert positions_of(read_json(tmp_path / "config.json")) == 40
    assert found.parameters == model.num_parameters()
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma3", "llama4"])
def test_a_model_that_sees_is_its_language_model(kind: str, tmp_path: Path) -> None:
    whole = saved(tmp_path, kind, text_config={**TEXT, **(EXPERTS if kind == "llama4" else {})}, vision_config=EYES)
    found, model = facts(locate(str(tmp_path))), load(locate(str(tmp_path)), dtype=torch.float32).model
    assert found is not None and found.parameters == model.num_parameters()
    assert found.layers == model.config.num_hidden_layers == 3
    wanted = whole(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(model(IDS, use_cache=False).logits, wanted)
    documents = Documents.of([tuple(IDS[0].tolist())], model.device)
    torch.testing.assert_close(head_logits(model, hidden_rows(model, documents, torch.arange(20))), wanted[0])
    student = take_layers(model, (0, 1, 2))
    student.save_pretrained(tmp_path / "student")
    again = load(locate(str(tmp_path / "student")), dtype=torch.float32).model
    torch.testing.assert_close(again(IDS, use_cache=False).logits, wanted)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({}, "in a way its config.json does not name"),
    ],
)
def test_quantised_weights_are_refused_by_their_config_alone(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path, "llama", **TEXT)
    rewrite(tmp_path, load_file(tmp_path / "model.safetensors"), quantization_config=how)
    for read in (facts, load):
        with pytest.raises(InputError, match=rf"are quantised \({said}\)"):
            read(locate(str(tmp_path)))


@torch.no_grad()
def test_fp8_weights_become_plain_ones(tmp_path: Path) -> None:
    plain, eighths = saved(tmp_path, "llama", **TEXT), dict[str, Tensor]()
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        if "_proj" in name:
            eighths[name] = (weight * 16).to(torch.float8_e4m3fn)
            eighths[f"{name}_scale_inv"] = torch.full([-(-n // 16) for n in weight.shape], 1 / 16)
            plain.get_parameter(name).copy_(eighths[name].float() / 16)
        else:
            eighths[name] = weight
    how = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    rewrite(tmp_path, eighths, quantization_config=how)
    found, model = facts(locate(str(tmp_path))), load(locate(str(tmp_path)), dtype=torch.float32).model
    assert found is not None and found.parameters == plain.num_parameters()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(take_layers(model, range(3))(IDS).logits, plain(IDS).logits)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    saved(tmp_path, "llama", **TEXT)
    weights = load_file(tmp_path / "model.safetensors")
    rewrite(tmp_path, {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name})
    with pytest.raises(InputError, match=r"lacks 3 weights of a LlamaForCausalLM, such as 'model\.layers\.1\.mlp"):
        load(locate(str(tmp_path)))
