"""What is used of an architecture is what plain transformers computes; what is not is left out or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from student_runs import recipe_in
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from potstill.engines.local import ChoiceScorer, KeptPrefix
from potstill.engines.sampling import Sampling
from potstill.engines.selftest import Abilities, abilities_of
from potstill.engines.slots import Rollouts
from potstill.errors import InputError
from potstill.models import selftest
from potstill.models.documents import Documents, last_hidden, packs
from potstill.models.forward import head_logits, hidden_rows, require_head
from potstill.models.tiny import cut_layers, tiny
from potstill.pipeline import Run, distill
from potstill.text.tokens import Ids
from potstill.train.batch import Row
from potstill.train.teaching import LiveTeacher

SIZES = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

PLAIN = frozenset[str]()
NOT_PACKED = frozenset({"packed_rows"})
NO_KEYS = frozenset({"packed_rows", "kept_prefix", "slots"})
"""What is not used of layers that keep something else than keys and values."""

ARCHITECTURES: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "llama": ({}, PLAIN),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, PLAIN),
    "gemma2": ({"sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}, NOT_PACKED),
    "gemma3_text": ({**WINDOWS, "query_pre_attn_scalar": 8}, PLAIN),
    "gpt2": ({"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}, PLAIN),
    "gpt_neo": (
        {"num_hidden_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6},
        NOT_PACKED | {"slots"},
    ),
    "mamba": ({"state_size": 8}, NO_KEYS),
    "falcon_h1": ({**MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.25, "embedding_multiplier": 2.0}, NO_KEYS),
    "recurrent_gemma": (
        {"lru_width": 32, "attention_window_size": 6, "logits_soft_cap": 2.0,
         "block_types": ["recurrent", "recurrent", "attention"]},
        NO_KEYS | {"own_cache"},
    ),
    "gpt_oss": ({**EXPERTS, **WINDOWS}, NOT_PACKED),
    "lfm2": (
        {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False, "block_ff_dim": 48},
        NO_KEYS,
    ),
    "granitemoehybrid": (
        {**EXPERTS, **MAMBA, "logits_scaling": 4.0, "shared_intermediate_size": 16,
         "layer_types": ["mamba", "attention", "mamba"]},
        NO_KEYS,
    ),
    "nemotron": ({}, NOT_PACKED),
}  # fmt: skip


def made(kind: str, **more: Any) -> PreTrainedModel:
    """With weights of a size at which a mistake shows, none of them neutral."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **SIZES | ARCHITECTURES[kind][0] | more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(4)
            elif "bias" in name or "sink" in name:
                weight.normal_()
    return model


def texts(lengths: Sequence[int], begin: Sequence[int] = ()) -> list[Ids]:
    draw = torch.Generator().manual_seed(1)
    return [(*begin, *torch.randint(3, 90, (length,), generator=draw).tolist()) for length in lengths]


@torch.no_grad()
def plain_logp(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    """ln p of each next token, by transformers alone."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def assert_near(found: object, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), wanted, atol=2e-4, rtol=1e-4)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is remembered of what was tested, before and after."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selftest, "_KNOWN", {})
    selftest._sample.cache_clear()


def unseen(*_: object) -> None:
    """A self-test that finds nothing."""


@pytest.fixture
def untested(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_tested", unseen)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_path_gives_what_plain_transformers_gives(kind: str) -> None:
    model = made(kind)
    found = abilities_of(model.config)
    faults = {name for name in Abilities.__slots__ if getattr(found, name) is not None}
    assert (faults, found.refusal({"scores", "learns", "checkpoints"})) == (ARCHITECTURES[kind][1], None)
    require_head(model, kind)

    rows = texts((5, 14, 9))
    documents = Documents.of(rows, model.device)
    with torch.no_grad():
        hidden_TD = hidden_rows(model, documents, torch.arange(len(documents.ids_T)))
    for ids, start in zip(rows, documents.start_S, strict=True):
        assert_near(head_logits(model, hidden_TD[start : start + len(ids)]).log_softmax(-1), plain_logp(model, ids))

    prefix, choices = texts((18,))[0], [(7,), (8, 9)]
    prompts = texts((3, 9, 6), prefix)
    scored = ChoiceScorer(model, choices, prefix=prefix).score(prompts, batch_tokens=24)
    for batch in scored:
        for at, logp in zip(batch.positions, batch.choice_logp, strict=True):
            told = plain_logp(model, (*prompts[at], 8))
            end = len(prompts[at])
            assert_near(logp, torch.tensor([told[end - 1, 7], told[end - 1, 8] + told[end, 9]]))

    rollouts = Rollouts(model, slots=2, capacity_tokens=40, end_ids=[2])
    for one in rollouts.roll_out(prompts, n=2, sampling=Sampling(seed=1), max_new_tokens=6):
        ids, cut = (*prompts[one.prompt], *one.ids), len(prompts[one.prompt])
        assert_near(one.logp, plain_logp(model, ids)[range(cut - 1, len(ids) - 1), one.ids])


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "gpt_oss"])
def test_a_teacher_whose_prompts_begin_alike_scores_as_plain_transformers(kind: str) -> None:
    model = made(kind)
    begin = texts((20,))[0]
    rows = [Row((5,), ids[-4:], teacher_prefix=ids[:-4]) for ids in texts((8, 11, 6), begin)]
    logits_NV = LiveTeacher(model, [row.teacher_prefix for row in rows]).logits(rows, 90)
    wanted = [plain_logp(model, (*row.teacher_prefix, *row.target))[-5:-1] for row in rows]
    assert_near(logits_NV.log_softmax(-1), torch.cat(wanted))


def test_gradients_reach_attention_sinks_where_layers_are_computed_again() -> None:
    model = made("gpt_oss").train()
    documents = Documents.of(texts((5, 14)), model.device)
    hidden_rows(model, documents, torch.arange(19), gradient_checkpointing=True).sin().sum().backward()
    sinks = [weight for name, weight in model.named_parameters() if "sink" in name]
    assert len(sinks) == 3 and all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in sinks)


def test_what_cannot_be_computed_in_batches_is_refused_by_name() -> None:
    config = AutoConfig.for_model("doge", **SIZES)  # chooses its keys among all there are, pads too
    refused = abilities_of(config).refusal({"scores"})
    assert refused is not None and "rows padded on the right are not what each is alone" in refused[0]
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="DogeForCausalLM cannot be computed in batches"):
        last_hidden(model, Documents.of(texts((3, 9)), model.device))


@pytest.mark.parametrize("given", [{"s_aux": torch.zeros(4)}, {"attention_mask": torch.zeros(1, 1, 9, 9)}])
def test_packed_attention_refuses_what_it_does_not_know(given: dict[str, Any]) -> None:
    attend = ALL_ATTENTION_FUNCTIONS["potstill_documents"]
    documents, qkv = Documents.of(texts((3, 6)), torch.device("cpu")), [torch.ones(1, 4, 9, 8)] * 3
    assert attend(torch.nn.Identity(), *qkv, None, documents=documents, position_ids=1)[0].shape == (1, 9, 4, 8)
    with pytest.raises(
        InputError, match=r"Identity is no plain attention: it is given \['(s_aux|a mask of its own)'\]"
    ):
        attend(torch.nn.Identity(), *qkv, documents=documents, **{"attention_mask": None, **given})


# A fault is planted: what comes out with the self-test switched off, and with it on.


def planted_multiplier(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        made = plain(self, *args, **named)
        made.logits = made.logits * 0.5
        return made

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)


def test_a_head_multiplier_is_not_seen_without_the_self_test(untested: None, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_multiplier(monkeypatch)
    assert abilities_of(made("llama").config).refusal({"scores", "learns"}) is None


def test_a_head_multiplier_is_refused(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_multiplier(monkeypatch)
    refused = abilities_of(made("llama").config).refusal({"scores"})
    assert refused is not None and "its logits are not its head applied to its last hidden states" in refused[0]


def test_a_head_multiplier_in_the_weights_alone_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    require_head(model, "some/model")
    planted_multiplier(monkeypatch)
    with pytest.raises(InputError, match=r"'some/model' \(LlamaForCausalLM\): its logits are not its head"):
        require_head(model, "some/model")


def off_by(model: PreTrainedModel) -> float:
    """How far packed or padded rows are from each alone."""
    rows = texts((5, 14, 9))
    documents = Documents.of(rows, model.device)
    with torch.no_grad():
        made_TD = last_hidden(model, documents)
        alone = [model.base_model(torch.tensor([ids])).last_hidden_state[0] for ids in rows]
    parts = zip(documents.start_S, alone, strict=True)
    return max((made_TD[start : start + len(one)] - one).abs().max().item() for start, one in parts)


def plant_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that keeps a part of its weight for nothing."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(*args: Any, **named: Any) -> Any:
        made, weights = plain(*args, **named)
        return made * torch.linspace(0.5, 1, made.shape[2]).view(-1, 1), weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attend)


def test_a_sink_is_not_seen_without_the_self_test(untested: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_sink(monkeypatch)
    assert off_by(made("llama")) > 0.1


def test_a_sink_is_avoided(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_sink(monkeypatch)
    model = made("llama")
    assert off_by(model) < 1e-5 and not packs(model)
    assert "packed rows (off by" in abilities_of(model.config).spoken()


def scored_off_by(model: PreTrainedModel) -> float:
    prefix = texts((18,))[0]
    prompts = texts((3, 9, 6), prefix)
    batches = ChoiceScorer(model, [(7,)], prefix=prefix).score(prompts, batch_tokens=8)
    found = {at: logp[0] for b in batches for at, logp in zip(b.positions, b.choice_logp, strict=True)}
    return max(abs(plain_logp(model, ids)[-1, 7].item() - found[at]) for at, ids in enumerate(prompts))


def plant_stale_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that was lent to one batch is lent to the next."""
    lend, lent = KeptPrefix.cache, dict[tuple[int, int], Any]()

    def cache(self: KeptPrefix, size: int) -> Any:
        return lent.setdefault((id(self), size), lend(self, size))

    monkeypatch.setattr(KeptPrefix, "cache", cache)


def test_a_stale_prefix_is_not_seen_without_the_self_test(untested: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_stale_prefix(monkeypatch)
    assert scored_off_by(made("llama")) > 0.01


def test_a_stale_prefix_is_avoided(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_stale_prefix(monkeypatch)
    assert scored_off_by(made("llama")) < 1e-5


def test_it_is_tested_once_per_configuration(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = made("qwen2").config
    first = abilities_of(config)

    def again(*_: object) -> str:
        return "tested again"

    monkeypatch.setattr(selftest, "_KNOWN", {})  # another process
    monkeypatch.setattr(selftest, "_tested", again)
    assert abilities_of(config) == first == abilities_of(AutoConfig.for_model(**config.to_dict()))
    other = cut_layers(config, [0, 2])
    assert abilities_of(other).logits == "tested again"


def test_a_tiny_model_keeps_kinds_of_layers_and_multipliers_and_little_else() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"] * 4
    many = {"num_hidden_layers": 9, "layer_types": kinds}
    big = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "head_dim": 128,
        "vocab_size": 50_000,
        "num_attention_heads": 32,
    }
    config = AutoConfig.for_model("gemma3_text", **SIZES | big | many | {"query_pre_attn_scalar": 77})
    model = tiny(config)
    kept = model.config
    assert kept.layer_types == kinds[:6]
    assert (kept.query_pre_attn_scalar, kept.num_attention_heads, kept.num_key_value_heads) == (77, 16, 1)
    assert model.num_parameters() < 4_000_000 and config.num_hidden_layers == 9


def test_layers_that_differ_in_width_are_cut_with_their_widths() -> None:
    narrow = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 90, "global_head_dim": 16}
    config: PretrainedConfig = AutoConfig.for_model("gemma4_text", **SIZES | WINDOWS | narrow)
    cut: Any = cut_layers(config, [1, 0])
    assert [layer.head_dim for layer in cut.per_layer_config] == [16, 8]
    assert abilities_of(config).refusal({"learns", "cuts", "checkpoints"}) is None


def saved(kind: str, tiny_model: Path, folder: Path) -> Path:
    """A model of that architecture with the tiny model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    own = ARCHITECTURES[kind][0] if kind in ARCHITECTURES else {}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | own | sizes)).save_pretrained(folder)
    return folder


def test_a_student_that_cannot_be_computed_is_refused_before_anybody_is_paid(tiny_model: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, saved("doge", tiny_model, tmp_path / "doge"))
    with pytest.raises(InputError, match=r"student\.start '.*doge' \(doge\): rows padded on the right"):
        Run(recipe, tmp_path / "run").generate()
    assert not (tmp_path / "run" / "answers.parquet").exists()


def test_a_student_of_states_and_keys_goes_the_whole_road(tiny_model: Path, tmp_path: Path) -> None:
    folder = saved("lfm2", tiny_model, tmp_path / "lfm2")
    student = {"start": str(folder), "licence": "mit", "layers": 2, "freeze_embeddings": False}
    train = {"epochs": 1, "batch_size": 32, "learning_rate": 0.01, "gradient_checkpointing": True}
    run = distill(
        recipe_in(tmp_path, folder, student=student, train=train), folder=tmp_path / "run", through="evaluate"
    )
    scores = run.read_scores()
    assert scores is not None and scores["arms"]["student"]["accuracy"]["n"] == 16
    assert run.folder.arm_model("student").joinpath("config.json").is_file()
