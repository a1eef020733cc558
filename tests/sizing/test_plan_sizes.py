"""The planner's sizes: held against a real state, what autograd keeps and what a process takes; laws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_runs import write_recipe
from hypothesis import given
from hypothesis import strategies as st
from shaped import config_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from loopback import loopback
from potstill.cli import execute
from potstill.losses.linear import _chunk
from potstill.models.documents import Documents
from potstill.models.forward import hidden_rows
from potstill.models.int8 import to_int8
from potstill.models.lora import adapt
from potstill.models.shapes import Shape
from potstill.models.student import freeze
from potstill.recipe import load_recipe
from potstill.recipe.student import Encoder, EncoderShape, Lora
from potstill.recipe.train import TrainSettings
from potstill.signals import Hidden, Sampled
from potstill.sizing.job import size_of
from potstill.sizing.memory import LOSS_BYTES, Learning, activation_bytes, scoring_memory, training_memory
from potstill.sizing.pace import learning_flops
from potstill.train.state import TrainState

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
LORA = Lora(rank=4, alpha=8)


def tiny(architecture: str = "qwen3", **changes: Any) -> Shape:
    shape = Shape(
        architecture=architecture,
        layers=3,
        width=64,
        heads=4,
        kv_heads=2,
        head_width=32,
        inner=192,
        vocabulary=300,
        tied=architecture != "qwen2",
        biased=architecture == "qwen2",
    )
    return replace(shape, **changes)


def built(learning: Learning) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(learning.shape), dtype=torch.float32)
    if learning.lora is not None:
        adapt(model, learning.lora, seed=0)
    freeze(model, embeddings=learning.frozen_embeddings, layers=learning.frozen_layers)
    return model.train()


KINDS = [
    Learning(shape=tiny(), pass_tokens=64),
    Learning(shape=tiny(tied=False), pass_tokens=64, frozen_embeddings=False),
    Learning(shape=tiny("qwen2"), pass_tokens=64, frozen_layers=1),
    Learning(shape=tiny(), pass_tokens=64, lora=LORA, frozen_layers=1),
    Learning(shape=tiny(), pass_tokens=64, lora=Lora(rank=2, alpha=2, targets=("q_proj",)), frozen_embeddings=False),
]


@pytest.mark.parametrize("learning", KINDS)
def test_weights_gradients_and_moments_are_those_of_a_real_trainee(learning: Learning) -> None:
    model = built(learning)
    state = TrainState(model, TrainSettings())  # pyright: ignore[reportCallIssue]
    model(torch.arange(1, 60).unsqueeze(0)).logits.sum().backward()
    state._lookups.add_gradients()
    said = training_memory(learning)
    assert said.weights == sum(p.nbytes for p in model.parameters())
    assert said.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state.update(rate=1e-4)
    states = state._optimizer.state.values()
    assert said.optimizer == sum(state[key].nbytes for state in states for key in ("exp_avg", "exp_avg_sq"))
    state.take_into_average()
    average = training_memory(replace(learning, averaged=True)).average
    assert average == sum(value.nbytes for value in state._average.values())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_in_int8_takes_the_bytes_that_it_takes(architecture: str, dtype: torch.dtype) -> None:
    shape = tiny(architecture)
    model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)
    held = sum(p.nbytes for p in to_int8(model, name="it").parameters())
    learning = Learning(shape=tiny(), pass_tokens=64, teacher=shape, teacher_int8=True)
    hidden, in_work = dtype.itemsize * 64 * shape.width, dtype.itemsize * shape.inner * shape.width
    assert training_memory(learning, half=dtype.itemsize).teacher == held + hidden + in_work


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "frozen", "within"),
    [("llama", 0, 0.05), ("qwen2", 1, 0.05), ("qwen3", 0, 0.05), ("gemma3_text", 0, 0.1)],
)
def test_activations_are_what_autograd_keeps(
    architecture: str, frozen: int, within: float, dtype: torch.dtype, lora: Lora | None
) -> None:
    documents = Documents.of([tuple(range(1, 1 + n)) for n in (60, 90, 100, 130, 131)], torch.device("cpu"))
    tokens = len(documents.ids_T)
    learning = Learning(shape=tiny(architecture), pass_tokens=tokens, frozen_layers=frozen, lora=lora)
    model = built(learning)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    matrices = {shape for p in model.parameters() for shape in (tuple(p.shape), tuple(p.shape[::-1]))}
    kept: dict[int, torch.Tensor] = {}  # alive, so that no address comes up twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        hidden_rows(model, documents, torch.arange(tokens))
    copies = sum(t.untyped_storage().nbytes() for t in kept.values() if tuple(t.shape) in matrices)
    activations = sum(t.untyped_storage().nbytes() for t in kept.values()) - copies
    said = training_memory(learning, half=dtype.itemsize)
    assert activations == pytest.approx(said.activations, rel=within)
    if dtype == torch.bfloat16 and lora is None:
        assert copies == pytest.approx(said.copies, rel=0.02)


@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed"])
def test_the_peak_of_a_real_step_is_the_promised_one_within_15_percent(kind: str) -> None:
    paths = os.pathsep.join([str(HERE), *sys.path])
    # glibc gives large blocks back at once: what is left is what torch holds
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(HERE / "peak_of_training.py"), kind, "1024"],
        env={**os.environ, **fixed},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["measured"] == pytest.approx(found["promised"], rel=0.15)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("vocabulary", [300, 49_152, 151_936])
def test_the_tile_of_the_loss_is_the_one_that_the_loss_takes(dense: bool, vocabulary: int) -> None:
    hidden_ND = torch.empty((8192, 8), dtype=torch.bfloat16, device="meta")
    ids_NK = torch.empty((8192, 1), dtype=torch.long, device="meta")
    signal = Hidden(hidden_ND, torch.empty((vocabulary, 8), device="meta")) if dense else Sampled(ids_NK, ids_NK)
    rows, columns = _chunk(hidden_ND, vocabulary, signal, "auto", None)
    assert columns == vocabulary
    assert rows * vocabulary * (10 if dense else 6) <= LOSS_BYTES < (rows + 8) * vocabulary * (10 if dense else 6)


SHAPES = st.builds(
    lambda architecture, layers, width, inner, vocabulary, tied: tiny(
        architecture, layers=layers, width=width, inner=inner, vocabulary=vocabulary, tied=tied
    ),
    st.sampled_from(["llama", "qwen2", "qwen3", "gemma3_text"]),
    st.integers(1, 40),
    st.sampled_from([64, 1024, 4096]),
    st.integers(64, 20_000),
    st.sampled_from([300, 49_152, 262_144]),
    st.booleans(),
)
LEARNINGS = st.builds(
    lambda shape, tokens, embeddings, averaged, dense: Learning(
        shape=shape, pass_tokens=tokens, frozen_embeddings=embeddings, averaged=averaged, dense=dense
    ),
    SHAPES,
    st.integers(1, 20_000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(learning=LEARNINGS, more=st.integers(1, 20_000), teacher=SHAPES, gpus=st.integers(1, 64))
def test_more_work_never_takes_less_memory_and_more_gpus_never_more_on_each(
    learning: Learning, more: int, teacher: Shape, gpus: int
) -> None:
    def total(changed: Learning, gpus: int = 1) -> int:
        return training_memory(changed, gpus=gpus).total

    base = total(learning, gpus)
    assert total(replace(learning, pass_tokens=learning.pass_tokens + more), gpus) >= base
    assert total(replace(learning, teacher=teacher), gpus) > base  # cached is less than live
    int8 = replace(learning, teacher=teacher, teacher_int8=True)
    assert total(int8, gpus + 1) <= total(int8, gpus) and total(int8, gpus) > base
    assert total(replace(learning, slots=2, capacity=100), gpus) > base
    mixing = replace(learning, slots=2, capacity=100, teacher=teacher)
    assert total(replace(mixing, teacher_capacity=150), gpus) > total(mixing, gpus)  # the teacher has slots too
    assert total(replace(learning, averaged=True), gpus) >= base
    assert total(replace(learning, frozen_layers=learning.shape.layers - 1)) <= total(learning)
    assert total(learning, gpus + 1) <= base
    assert scoring_memory(teacher, tokens=512, logits=8, gpus=gpus + 1) <= scoring_memory(
        teacher, tokens=512, logits=8, gpus=gpus
    )
    assert activation_bytes(learning) < activation_bytes(replace(learning, shape=learning.shape.cut(41)))


@given(learning=LEARNINGS, rank=st.integers(1, 4))
def test_lora_takes_less_than_training_all_in_memory_and_work(learning: Learning, rank: int) -> None:
    adapted = replace(learning, lora=Lora(rank=rank, alpha=1))
    assert training_memory(adapted).total < training_memory(learning).total
    assert activation_bytes(adapted) < activation_bytes(replace(adapted, lora=Lora(rank=rank, alpha=1, dropout=0.1)))
    work = {"read": 1000, "learnt": 10, "context": 100}
    assert learning_flops(adapted, **work) < learning_flops(learning, **work)


def test_full_training_is_six_operations_a_parameter_and_token() -> None:
    learning = Learning(shape=tiny(tied=False), pass_tokens=64, frozen_embeddings=False)
    matrices = learning.shape.layers * learning.shape.matrices_per_layer + learning.shape.embeddings
    assert learning_flops(learning, read=10, learnt=10, context=0) == 6 * matrices * 10
    # and 12 L x width x what a token looks back on (Chowdhery et al. 2022, appendix B)
    more = learning_flops(learning, read=10, learnt=10, context=50) - 6 * matrices * 10
    assert more == 12 * learning.shape.layers * learning.shape.queries * 50 * 10


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert execute(["check", *arguments, "--json", "--offline"]) == 0
    return json.loads(capsys.readouterr().out)


def test_golden_plan_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", os.devnull)
    said = planned(capsys, "recipes/qwen3_8b_to_0.6b.yaml", "--prompts", "20000")
    sizes = said["sizes"]
    assert [(model["role"], model["parameters"]) for model in sizes["models"]] == [
        ("teacher", 8_190_735_360),
        ("scored by", 8_190_735_360),
        ("student", 596_049_920),
    ]
    memory = sizes["memory_on_one_gpu"]
    layers = 596_049_920 - 151_936 * 1024  # the embeddings stay as they are
    assert (memory["weights"], memory["optimizer"]) == (4 * 596_049_920, 8 * layers)
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    # 28 layers x (16 D + 10 D + 2 (3 x 2048 + 2 x 1024) + 4 x 16 + 6 x 3072 + 8 F) and 8 D, D = 1024, F = 3072
    assert memory["activations"] == 8192 * (28 * (26 * 1024 + 16_384 + 64 + 18_432 + 8 * 3072) + 8 * 1024)
    assert sizes["examples_at_most"] == 40_000 and sizes["signals"]["tokens"] == 40_000 * 512
    # 64 of 151,936 ids: 11 bits and 138 marks; 64 x 12 bits; reach, tail, log-sum-exp; a key of 20 bytes for 512 tokens
    assert sizes["signals"]["bytes_per_token"] == 88 + 18 + 96 + 10 + 20 / 512
    counts = {fit["gpu"]: fit["count"] for fit in sizes["gpus"]}
    assert counts == {"RTX 4090": 4, "L40S": 1, "H100": 1, "H200": 1}


def test_a_teacher_in_int8_is_planned_with_half_the_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", os.devnull)
    recipe, live = "recipes/qwen3_8b_to_0.6b.yaml", ("--set", "train.signal={kind: live}")
    int8 = ("--set", "train.scored_by.quantization=int8")
    bf16, small = (planned(capsys, recipe, *live, *more)["sizes"] for more in ((), int8))
    assert [model["quantization"] for model in small["models"]] == [None, "int8", None]
    outside = 2 * 2 * 151_936 * 4096  # embeddings and head stay in bf16
    before, after = (sizes["memory_on_one_gpu"]["teacher"] - outside for sizes in (bf16, small))
    assert before == pytest.approx(2 * 6.95e9, rel=0.01) and after == pytest.approx(before / 2, rel=0.03)
    assert bf16["memory_on_one_gpu"]["total"] - small["memory_on_one_gpu"]["total"] == before - after
    cached = ("--set", "train.pass_tokens=2048")  # filling the cache takes more than training from it
    most, less = (planned(capsys, recipe, *cached, *more)["sizes"] for more in ((), int8))
    assert most["gpus"][0]["memory_on_each"] > most["memory_on_one_gpu"]["total"]
    assert less["gpus"][0]["memory_on_each"] == less["memory_on_one_gpu"]["total"]
    assert execute(["check", recipe, *int8, "--offline"]) == 0
    assert "scored by: Qwen/Qwen3-8B, 8.19 B parameters, int8 weights" in " ".join(capsys.readouterr().out.split())


def test_what_does_not_fit_is_told_how_it_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", os.devnull)
    recipe = "recipes/qwen3_8b_to_0.6b.yaml"
    large = ("--set", "train.pass_tokens=32768", "--set", "train.batch_size=64", "--set", "generate.max_tokens=8192")
    fit = planned(capsys, recipe, *large)["sizes"]["gpus"][0]
    assert fit["count"] is None and fit["fits_with_gradient_checkpointing"]
    again = planned(capsys, recipe, *large, "--set", "train.gradient_checkpointing=true")["sizes"]["gpus"][0]
    assert again["count"] is not None
    assert execute(["check", recipe, "--offline", *large]) == 0
    said = capsys.readouterr().out
    passes = fit["pass_tokens_that_fit"]
    ways = [f"--set train.pass_tokens={passes}"] if passes else []
    ways.append("--set train.gradient_checkpointing=true")
    assert f"RTX 4090: with {' or '.join(ways)} it fits" in " ".join(said.split())


RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*_to_*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_real_size_is_planned_and_says_its_duties(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / "recipes" / name)
    sizes = planned(capsys, f"recipes/{name}")["sizes"]
    assert all(model["parameters"] for model in sizes["models"])
    assert {80, 141} <= {fit["gigabytes"] for fit in sizes["gpus"] if fit["count"] == 1}
    assert (sizes["signals"] is None) == (recipe.train.signal.kind == "live")
    if "llama" in recipe.teacher.licence:
        assert recipe.name.startswith("Llama")
        execute(["check", f"recipes/{name}"])
        assert "Built with Llama" in capsys.readouterr().out


def test_the_plan_of_choices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    said = planned(capsys, "recipes/reviews_encoder.yaml")
    assert said["task"] == "choice" and said["probabilities"] == "computed here"
    assert said["prompts"] == {"train": 1000, "validation": 150, "test": 600}
    assert (said["requests"], said["tokens_written_at_most"], said["dollars_at_most"]) == (1150, 0, 0)
    student, encoder = said["sizes"]["models"][1]["parameters"], said["work"][2]
    assert said["work"][1]["what"] == "student: up to 1,000 examples x 2 epochs"
    assert encoder["what"] == "encoder: up to 1,000 examples x 8 epochs" and encoder["seconds"] > 0
    assert student == 49_152 * 576 + 4 * 3_540_096 + 576
    assert encoder["memory"] == 16 * (49_152 * 128 + 2 * (10 * 128**2 + 256) + 128 + 128**2 + 128 + 129 * 2)
    assert said["work"][-1]["what"] == "600 test prompts x 4 arms: teacher, student, encoder, tfidf"
    more = planned(capsys, "recipes/reviews_encoder.yaml", "--prompts", "10000")
    assert more["prompts"] == {"train": 10_000, "validation": 150, "test": 600} and more["requests"] == 10_150
    assert more["work"][1]["tokens"] == pytest.approx(10 * said["work"][1]["tokens"], abs=20)
    votes = ("--set", "teacher.engine={kind: server, url: 'http://127.0.0.1:9/v1'}", "--set", "generate.n=8")
    asked = planned(capsys, "recipes/reviews_encoder.yaml", *votes, "--set", "generate.max_tokens=4")
    assert asked["probabilities"] == "votes" and asked["requests"] == 8 * 1150
    assert asked["tokens_written_at_most"] == 4 * 8 * 1150
    untold = ("--set", "task.probabilities=completions")  # needs the template that the server's model reads
    assert execute(["check", "recipes/reviews_encoder.yaml", *votes[:2], *untold]) == 2
    assert "'task.probabilities' completions needs a server" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [EncoderShape(), EncoderShape(layers=3, hidden=64, heads=4)])
def test_an_encoder_of_random_weights_is_as_large_as_it_is(shape: EncoderShape, tiny_model: Path) -> None:
    from potstill.models.encoder import initial_encoder

    student = Encoder(kind="encoder", shape=shape, tokenizer=str(tiny_model))
    made = initial_encoder(student, ["bad", "fair", "good"], seed=0)
    size = size_of(student, 3)
    assert size and size.parameters == sum(p.numel() for p in made.model.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("student.layers=29", "student.layers is 29, but the model it starts from has 28 layers"),
        ("student.lora={rank: 4, alpha: 8, targets: [c_attn]}", "student.lora.targets names 'c_attn'"),
        ("prompts.source=nowhere.jsonl", "there is no file at 'nowhere.jsonl'"),
    ],
)
def test_a_wrong_size_gives_one_sentence(
    change: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert execute(["check", "recipes/qwen3_8b_to_0.6b.yaml", "--set", change]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]


def test_as_if_there_were_more_prompts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = "recipes/smollm2_1.7b_to_360m.yaml"
    as_they_are = planned(capsys, recipe)
    thousandfold = planned(capsys, recipe, "--prompts", "16000")
    for key in ("requests", "tokens_read"):
        assert thousandfold[key] == 1000 * as_they_are[key]
    assert thousandfold["sizes"]["memory_on_one_gpu"] == as_they_are["sizes"]["memory_on_one_gpu"]
    assert execute(["check", recipe, "--prompts", "0"]) == 2


def test_a_probe_puts_the_real_length_of_answers_in_place_of_the_longest(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loopback() as server:
        recipe = str(write_recipe(tmp_path, server.url, prompts=40, n=2, max_tokens=512))
        student = ("--set", f"student={{start: {tiny_model}, licence: mit}}", "--run", str(tmp_path / "run"))
        before = planned(capsys, recipe, *student)["sizes"]
        assert execute(["check", recipe, *student, "--probe", "10", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    paths = said["self_tests"]["student.start (llama)"]
    assert paths.startswith("exact: logits, packed rows, padded rows, kept prefix")
    after, answer = said["sizes"], said["estimate"]["tokens_written"][1] / said["requests"]
    prompt = before["tokens_trained"] / before["examples_at_most"] / 3 - 512  # three epochs
    assert 0 < answer < 512
    assert after["tokens_trained"] == pytest.approx(3 * 80 * (prompt + answer), abs=3)
    assert after["memory_on_one_gpu"] == before["memory_on_one_gpu"]  # the longest answer is as long as before
