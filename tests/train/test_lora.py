"""Low-rank adapters: they alone learn, nobody notices them, and what is saved is a plain model. And students of chosen
layers, from the recipe to the exam."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from student_runs import equal, kept_answers, losses_of, recipe_in, refusal, stop_at, weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.cli import execute
from potstill.errors import InputError
from potstill.models.documents import Documents
from potstill.models.forward import head_logits, hidden_rows
from potstill.models.load import fingerprint
from potstill.models.lora import adapt, merged
from potstill.models.student import take_layers
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.student import Lora
from potstill.store.checkpoints import Checkpoints, tensors_in

LORA = {"rank": 4, "alpha": 8}
OFTEN = {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "average": 0.5, "checkpoint_seconds": 1e-6}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "logit_kd": {"method": {"kind": "logit_kd", "temperature": 2.0, "alpha": 0.5}},
}


def student(start: Path, **changes: Any) -> dict[str, Any]:
    return {"start": str(start), "licence": "mit", "lora": LORA, **changes}


def adapted_model(start: Path, lora: Lora) -> tuple[PreTrainedModel, Any]:
    """Adapters of which no part is nothing."""
    model = take_layers(AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32), (0, 2, 3))
    adapted = adapt(model, lora, seed=1)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    return model, adapted


@torch.no_grad()
@pytest.mark.parametrize("targets", [None, ("q_proj", "down_proj")])
def test_merged_weights_say_what_the_adapters_said(
    tiny_model: Path, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    model, adapted = adapted_model(tiny_model, Lora(rank=4, alpha=8.0, targets=targets))
    documents = Documents.of([tuple(range(5, 25)), tuple(range(30, 37))], model.device)
    at_R = torch.arange(3, 20)
    ids = torch.arange(5, 25).unsqueeze(0)
    plain = take_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), (0, 2, 3))
    unmerged, rows = model(ids).logits, head_logits(model, hidden_rows(model, documents, at_R))
    assert not torch.allclose(unmerged, plain(ids).logits, atol=0.1)
    whole = merged(adapted)
    torch.testing.assert_close(whole(ids).logits, unmerged, rtol=0, atol=1e-5)
    torch.testing.assert_close(head_logits(whole, hidden_rows(whole, documents, at_R)), rows, rtol=0, atol=1e-5)
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    whole.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert "adapter_config.json" not in {path.name for path in tmp_path.iterdir()}
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, unmerged, rtol=0, atol=1e-5)


def test_only_adapters_learn_and_they_change_nothing_before_they_do(tiny_model: Path) -> None:
    start = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model, ids = take_layers(start, range(4)), torch.arange(5, 25).unsqueeze(0)
    state = torch.random.get_rng_state()
    adapt(model, Lora(rank=2, alpha=2.0), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(model(ids).logits, start(ids).logits)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 4 * 7 * 2 and all("lora_" in name for name in learning)
    again = take_layers(start, range(4))
    adapt(again, Lora(rank=2, alpha=2.0), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_gpt2_has_linear_maps_of_its_own() -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    torch.manual_seed(0)
    start = AutoModelForCausalLM.from_config(config).eval()
    model = take_layers(start, (0, 2))
    adapted = adapt(model, Lora(rank=2, alpha=4.0), seed=0)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data.normal_()
    ids = torch.arange(9).unsqueeze(0)
    before = model(ids).logits
    assert len(learning) == 2 * 4 * 2 and not torch.allclose(before, take_layers(start, (0, 2))(ids).logits, atol=0.1)
    torch.testing.assert_close(merged(adapted)(ids).logits, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "query")])
def test_a_target_outside_the_layers_is_refused(tiny_model: Path, targets: tuple[str, ...]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with pytest.raises(InputError, match=rf"names '{targets[-1]}', but .* choose from q_proj, k_proj, v_proj, o_proj"):
        adapt(model, Lora(rank=2, alpha=2.0, targets=targets), seed=0)


@pytest.mark.parametrize("name", list(METHODS))
def test_it_learns_and_goes_on_after_a_stop_to_the_bit(name: str, tmp_path: Path, tiny_model: Path) -> None:
    scored = {"scored_by": {"model": str(tiny_model), "licence": "mit"}} if name == "logit_kd" else {}
    dropping = {**LORA, "dropout": 0.2}
    recipe = recipe_in(
        tmp_path, tiny_model, student=student(tiny_model, lora=dropping), train={**OFTEN, **METHODS[name], **scored}
    )
    before = fingerprint(tiny_model)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kept_answers(recipe, whole)
    kept_answers(recipe, broken)
    expected = weights(Run(recipe, whole).train()["student"])
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, broken, stop_at(7)).train()
    saved = Checkpoints(broken / "arms" / "student" / "checkpoints").newest_unread()
    assert saved is not None and saved[1]["step"] == 6
    learned = tensors_in(saved[0])
    assert learned and all(".lora_A." in tensor or ".lora_B." in tensor for tensor in learned)
    assert equal(weights(Run(recipe, broken).train()["student"]), expected)
    start = weights(tiny_model)
    changed = {k for k in start if not torch.equal(start[k], expected[k])}
    assert changed == {k for k in start if k.endswith("_proj.weight")}
    assert fingerprint(tiny_model) == before
    losses = losses_of(whole)
    assert min(losses[-3:]) < losses[0] - 0.05  # frozen embeddings of a random model leave little to say


def test_embeddings_may_learn_beside_adapters(tmp_path: Path, tiny_model: Path) -> None:
    train = {**OFTEN, "epochs": 10, "checkpoint_seconds": 60.0}
    recipe = recipe_in(tmp_path, tiny_model, student=student(tiny_model, freeze_embeddings=False), train=train)
    kept_answers(recipe, tmp_path / "run")
    start, made = weights(tiny_model), weights(Run(recipe, tmp_path / "run").train()["student"])
    losses = losses_of(tmp_path / "run")
    assert max(losses[-3:]) < 0.7 * losses[0]
    assert not torch.equal(start["model.embed_tokens.weight"], made["model.embed_tokens.weight"])
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    assert torch.equal(start["model.norm.weight"], made["model.norm.weight"])


def test_a_frozen_layer_has_no_adapter_that_learns(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_model, student=student(tiny_model, freeze_layers=2), train={**OFTEN, "epochs": 1})
    kept_answers(recipe, tmp_path / "run")
    start, made = weights(tiny_model), weights(Run(recipe, tmp_path / "run").train()["student"])
    changed = {k.split(".")[2] for k in start if not torch.equal(start[k], made[k])}
    assert changed == {"2", "3"}


LAYERS: dict[str, tuple[Any, int]] = {"listed": ([3, 1], 2), "spaced": ({"spaced": 3}, 3), "ranked": ({"ranked": 2}, 2)}


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_exam_is_sat_by_the_chosen_layers(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers, count = LAYERS[name]
    recipe = recipe_in(tmp_path, tiny_model, student=student(tiny_model, layers=layers), train={**OFTEN, "epochs": 1})
    run = tmp_path / "run"
    assert execute(["run", str(tmp_path / "recipe.yaml"), "--run", str(run)]) == 0
    chosen = json.loads((run / "arms" / "student" / "trained.json").read_text())["layers"]
    assert len(chosen) == count and chosen == {"listed": [3, 1], "spaced": [0, 2, 3]}.get(name, sorted(chosen))
    start = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    (base,) = (run / "test" / "base").glob("model-*")
    expected = take_layers(start, chosen).state_dict()
    found = weights(base)
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    card, page = (run / "model" / "README.md").read_text(), (run / "report.html").read_text()
    assert (
        "by LoRA of rank 4" in card
        and "of 4" in card
        and ("(counted from 0)" in card) == (chosen != list(range(count)))
    )
    assert str(tmp_path) not in card and card.split("is made of ")[1].split(f" of {tiny_model.name},")[0] in " ".join(
        page.split()
    )
    assert Run(recipe, run).evaluate()["arms"].keys() == {"teacher", "student", "base"}
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.num_hidden_layers == count
    capsys.readouterr()


def test_a_whole_model_is_a_student_too(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(
        tmp_path, tiny_model, student={"start": str(tiny_model), "licence": "mit"}, train={**OFTEN, "epochs": 1}
    )
    kept_answers(recipe, tmp_path / "run")
    start, made = weights(tiny_model), weights(Run(recipe, tmp_path / "run").train()["student"])
    assert made.keys() == start.keys()
    assert torch.equal(start["model.embed_tokens.weight"], made["model.embed_tokens.weight"])
    assert not torch.equal(start["model.layers.3.mlp.up_proj.weight"], made["model.layers.3.mlp.up_proj.weight"])


MISTAKES: dict[str, tuple[str, str]] = {
    "an empty list": ("student.layers=[]", "student.layers: an empty list leaves no layer"),
    "a layer twice": ("student.layers=[0, 2, 0]", "student.layers: layer 0 stands there twice"),
    "a layer before the first": ("student.layers=[-1]", "'student.layers.0' is -1; it should be greater than"),
    "a layer that is not there": ("student.layers=[0, 4]", "student.layers names layer 4, but the model it starts"),
    "too many spaced": ("student.layers={spaced: 5}", "student.layers is 5, but the model it starts from has 4"),
    "too many ranked": ("student.layers={ranked: 5}", "student.layers is 5, but the model it starts from has 4"),
    "another choice": ("student.layers={nearest: 2}", "unknown key 'nearest' in 'student.layers'; known keys"),
    "both choices": ("student.layers={ranked: 2, spaced: 2}", "unknown key 'spaced' in 'student.layers'"),
    "none spaced": ("student.layers={spaced: 0}", "'student.layers.spaced' is 0; it should be greater than"),
    "words": ("student.layers=first", "'student.layers' is 'first'; it should be a valid integer"),
    "all frozen of a list": ("student.freeze_layers=4", "student.freeze_layers is 4, but the model it starts from"),
    "no rank": ("student.lora={alpha: 8}", "'student.lora.rank' is missing"),
    "all dropped": ("student.lora.dropout=1.0", "'student.lora.dropout' is 1.0; it should be less than 1"),
    "no targets": ("student.lora.targets=[]", "'student.lora.targets' is []"),
    "asked by the chosen": ("select.prefer=learnable", "asks the student which answers to keep"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_in_a_student_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override, said = MISTAKES[name]
    layers = {"layers": {"ranked": 2}} if name == "asked by the chosen" else {}
    recipe_in(tmp_path, tiny_model, student=student(tiny_model, **layers))
    assert said in refusal("generate", tmp_path / "recipe.yaml", [override], capsys)
    assert not (tmp_path / "run").exists()


def test_without_peft_the_way_to_get_it_is_said_before_anything_is_paid(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_in(tmp_path, tiny_model, student=student(tiny_model))
    assert load_recipe(tmp_path / "recipe.yaml").student is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert execute(["generate", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]) == 3
    assert "'student.lora' needs the package peft; pip install 'potstill[lora]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
