"""Tied embeddings take from a training step the gradient that plain autograd gives them in float64, whatever is done
with what was looked up: nothing is scaled away, and nothing is forgotten when a training is stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.errors import GuardStopped
from potstill.models.documents import Documents
from potstill.models.forward import head_logits, hidden_rows
from potstill.recipe.methods import Sft
from potstill.recipe.train import Loop
from potstill.store.checkpoints import Checkpoints, tensors_in
from potstill.train.batch import Row, Whole, collate
from potstill.train.data import Data
from potstill.train.language import TokenObjective
from potstill.train.loop import Training, fit
from potstill.train.methods import terms
from potstill.train.state import TrainState

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
XGLM = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"pad_token_id": 4},  # a token of the rows: what is looked up at a pad is not learnt
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma": {"pad_token_id": 0},
    "gemma3_text": {"pad_token_id": 0, "query_pre_attn_scalar": 8},
    "xglm": {"pad_token_id": 0, **XGLM, **STILL},
    "biogpt": {"pad_token_id": 0, **STILL},
}
ROWS = [Row(prefix=(1, 5, 6, 5, 4), target=(7, 2)), Row(prefix=(1, 9), target=(5, 6, 4, 2))]


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class _TwiceLookedUp(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + super().forward(63 - input)


def _tripled(self: nn.Embedding, ids: Tensor) -> Tensor:
    return F.embedding(ids, self.weight) * 3


def _adapted(model: PreTrainedModel, _: nn.Embedding) -> None:
    LoraModel(model, LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False), "default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or "embed_tokens" in name)


def _renamed(embeddings: nn.Embedding) -> None:
    embeddings.__class__ = _TwiceLookedUp


TOUCHED: dict[str, Callable[[PreTrainedModel, nn.Embedding], object]] = {
    "a hook that scales": lambda _, e: e.register_forward_hook(lambda _, __, made: made * 3),
    "a hook before it": lambda _, e: e.register_forward_pre_hook(lambda _, given: (63 - given[0],)),
    "another forward": lambda _, e: setattr(e, "forward", MethodType(_tripled, e)),
    "another class": lambda _, e: _renamed(e),
    "a parametrisation": lambda _, e: parametrize.register_parametrization(e, "weight", _Halved()),
    "an adapter": _adapted,
    "sparse": lambda _, e: setattr(e, "sparse", True),
    "scaled by frequency": lambda _, e: setattr(e, "scale_grad_by_freq", True),
}


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**TINY, **SHAPES[kind], "tie_word_embeddings": True})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model


def of_plain_autograd(model: PreTrainedModel) -> dict[str, Tensor]:
    plain, total = copy.deepcopy(model), torch.zeros((), dtype=torch.float64)
    if model.config.model_type != "xglm":  # which overflows in float64
        plain = plain.double()
    for row in ROWS:
        logits_LV = plain(torch.tensor([(*row.prefix, *row.target)]), use_cache=False).logits[0]
        answer = torch.tensor(row.target)
        total = total + F.cross_entropy(logits_LV[len(row.prefix) - 1 : -1], answer, reduction="sum")
    (total / sum(row.targets for row in ROWS)).backward()
    return {name: p.grad for name, p in plain.named_parameters() if p.requires_grad and p.grad is not None}


def of_a_step(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """What AdamW keeps a tenth of in its first step, in two passes."""
    state = TrainState(model, Loop(clip_norm=1e9, weight_decay=0.0))
    for row in ROWS:
        batch = collate([row], (), whole=Whole.of(ROWS), device=model.device)
        terms(Sft(kind="sft"), model, hidden_rows(model, batch.documents, batch.at_R), batch)[0].backward()
    state.update(rate=1e-3)
    state.step = 1
    checkpoints = Checkpoints(folder)
    state.save(checkpoints, fingerprint="")
    found = checkpoints.newest_unread()
    assert found is not None
    held = tensors_in(found[0])
    return {n: held[f"optimizer.{n}.exp_avg"].double() * 10 for n, p in model.named_parameters() if p.requires_grad}


def close(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    wanted, found = of_plain_autograd(model), of_a_step(model, folder)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-7, name
    return wanted


@pytest.mark.parametrize("kind", list(SHAPES))
def test_embeddings_learn_as_by_plain_autograd(kind: str, tmp_path: Path) -> None:
    wanted = close(model_of(kind), tmp_path)
    assert any("embed" in name or "wte" in name for name in wanted)


@pytest.mark.parametrize("kind", ["llama", "gemma", "xglm"])
def test_frozen_embeddings_leave_the_rest_as_it_is(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    model.get_input_embeddings().requires_grad_(False)
    assert not any("embed_tokens" in name for name in close(model, tmp_path))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("touched", list(TOUCHED))
def test_whatever_touches_a_lookup_is_in_its_gradient(touched: str, tmp_path: Path) -> None:
    model = model_of("llama")
    TOUCHED[touched](model, model.get_input_embeddings())
    close(model, tmp_path)


def test_a_training_that_was_stopped_leaves_a_model_that_others_train() -> None:
    model = model_of("llama")
    objective = TokenObjective(method=Sft(kind="sft"), teach=None, spell=lambda _: "")
    how = Loop(learning_rate=1e30, weight_decay=0.0, batch_size=1, guards=None)
    start = copy.deepcopy(model)
    with pytest.raises(GuardStopped):
        fit(model, Training(data=Data(ROWS), objective=objective, settings=how, seed=0, validate=lambda _: {}))
    model.load_state_dict(start.state_dict())
    documents = Documents.of([row.prefix for row in ROWS], model.device)
    for one in (model, start):
        one.zero_grad()
        head_logits(one, hidden_rows(one, documents, torch.arange(4))).sum().backward()
    for after, before in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(after.grad, before.grad)
