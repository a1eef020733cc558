"""Low-rank adapters of mixtures of experts: the experts learn too, which are most of such a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from student_runs import equal, kept_answers, recipe_in, stop_at, weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from potstill.errors import InputError
from potstill.models.lora import adapt, merged, plain_weights, unmoved
from potstill.models.student import take_layers
from potstill.pipeline import Run
from potstill.recipe.student import Lora, Student
from potstill.store.run import RunFolder
from potstill.train.initial import InitialStudent, adapted
from potstill.train.traces import ArmFiles

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}  # fmt: skip
IDS = torch.arange(5, 25).unsqueeze(0)


def model_of(kind: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TINY, **more}), dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_every_expert_has_an_adapter_and_merges_exactly(kind: str) -> None:
    start = model_of(kind)
    model = take_layers(start, range(2))
    adapters = adapt(model, Lora(rank=2, alpha=4.0, dropout=0.3), seed=1)
    model.eval()  # what drops out is new
    torch.testing.assert_close(model(IDS).logits, start(IDS).logits)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in learning)
    torch.manual_seed(2)
    for parameter in learning.values():
        parameter.data.normal_(std=0.1)
    before = model(IDS).logits
    before.sum().backward()
    assert all(parameter.grad is not None for parameter in learning.values())
    assert not torch.allclose(before, start(IDS).logits, atol=0.01)
    plain = plain_weights(model)
    whole = merged(adapters)
    assert equal(plain, whole.state_dict())
    torch.testing.assert_close(whole(IDS).logits, before, rtol=0, atol=1e-5)
    changed = {name for name, weight in start.state_dict().items() if not torch.equal(weight, plain[name])}
    assert sum(".experts." in name and name.endswith("_proj") for name in changed) == 2 * 2
    assert not any("router" in name or name.endswith("mlp.gate.weight") for name in changed)


def test_experts_alone_may_be_named() -> None:
    model = model_of("qwen3_moe")
    adapt(model, Lora(rank=2, alpha=4.0, targets=("gate_up_proj",)), seed=1)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 2 * 2 and all(".experts." in name for name in learning)


DBRX = {
    "vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "share"), [("qwen3_moe", 0.0), ("dbrx", 0.66)])
def test_what_no_adapter_moves_is_said(kind: str, share: float, tmp_path: Path) -> None:
    """DBRX has all experts in matrices that are no linear maps."""
    config = AutoConfig.for_model(kind, **(DBRX if kind == "dbrx" else TINY))
    model, told = AutoModelForCausalLM.from_config(config, dtype=torch.float32), list[str]()
    settings = Student.model_validate({"start": "s", "licence": "mit", "lora": {"rank": 2, "alpha": 4}})
    codec: Any = None  # not read here
    start = InitialStudent(settings, model, codec, tmp_path, (0, 1), 2)
    files = ArmFiles(arm="student", fingerprint="f", run=RunFolder(tmp_path), watch=lambda said: told.append(said.note))
    assert adapted(start, files, seed=0) is not None
    assert unmoved(model) == pytest.approx(share, abs=0.05)
    assert told == (
        [
            f"{unmoved(model):.0%} of the layers' weights are in no linear map that an adapter moves: "
            "they stay as they are"
        ]
        if share
        else []
    )


def test_what_peft_refuses_is_one_sentence() -> None:
    more = {"state_size": 4, "num_hidden_layers": 2, "hidden_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=64, **more))
    with pytest.raises(InputError, match=r"student\.lora does not fit a mamba model: .*out_proj"):
        adapt(model, Lora(rank=2, alpha=4.0), seed=1)


def test_experts_learn_and_go_on_after_a_stop_to_the_bit(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "mixture"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    special = {"vocab_size": len(AutoTokenizer.from_pretrained(tiny_model)), "eos_token_id": 2, "pad_token_id": 2}
    model_of("qwen3_moe", **special).save_pretrained(folder)
    lora = {"rank": 2, "alpha": 4, "dropout": 0.2}
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 0.02, "checkpoint_seconds": 1e-6}
    changes: dict[str, Any] = {"student": {"start": str(folder), "licence": "mit", "lora": lora}, "train": train}
    recipe = recipe_in(tmp_path, folder, **changes)
    runs = tmp_path / "whole", tmp_path / "broken"
    for run in runs:
        kept_answers(recipe, run)
    expected, start = weights(Run(recipe, runs[0]).train()["student"]), weights(folder)
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, runs[1], stop_at(3)).train()
    assert equal(weights(Run(recipe, runs[1]).train()["student"]), expected)
    changed = {name for name in start if not torch.equal(start[name], expected[name])}
    assert sum("experts" in name for name in changed) == 2 * 2 and start.keys() == expected.keys()
