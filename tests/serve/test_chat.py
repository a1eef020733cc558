"""`potstill chat`: the student of a run of either task answers line by line, from its folder alone, loaded once."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    ModernBertConfig,
    pipeline,
)

from potstill.cli import execute
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.file import as_yaml
from potstill.serve.chat import answerer
from potstill.store.run import RunFolder

FILE = {"source": "none.jsonl", "licence": "mit", "columns": {"text": "text"}}
TEACHER = {"model": "m", "licence": "mit", "engine": {"kind": "canned", "answers": "none.jsonl"}}
TASK = {"kind": "choice", "choices": ["bad", "good"]}
TEXTS = ["the film is good", "a dull film", "worst"]


def run_of(folder: Path, **sections: Any) -> Path:
    recipe = Recipe.model_validate_json(json.dumps({"name": "talk", "prompts": FILE, "teacher": TEACHER, **sections}))
    folder.mkdir()
    (folder / "recipe.yaml").write_text(as_yaml(recipe))
    return folder


def written(model: Path, text: str) -> str:
    tokenizer, whole = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    turns = [{"role": "user", "content": text}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = whole.generate(**asked)[0, asked["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A model folder as training leaves it: it knows when to stop."""
    folder = tmp_path_factory.mktemp("student") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(0, 0.5)  # so that it writes something else of every prompt
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", [{"kind": "text"}, TASK])
def test_a_language_model_of_either_task_is_loaded_once_for_all_lines(
    task: dict[str, Any], tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("POTSTILL_PRECISION", "fp32")
    run = run_of(tmp_path / "run", task=task, student={"start": str(student), "licence": "mit"}, controls=[])
    assert execute(["chat", str(run), "--text", "x"]) == 2
    assert "there is no student in" in capsys.readouterr().err
    (run / "model").symlink_to(student)
    expected = [written(student, text) for text in TEXTS]
    assert len(set(expected)) > 1
    loads: list[object] = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    answer = answerer(RunFolder(run), load_recipe(run / "recipe.yaml"))
    assert [answer(text) for text in TEXTS] == expected and len(loads) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    assert execute(["chat", str(run)]) == 0
    assert len(loads) == 2 and len(capsys.readouterr().out.splitlines()) >= len(TEXTS)


def test_an_encoder_says_the_choice_and_how_sure_it_is(tmp_path: Path, tiny_model: Path, capsys: Any) -> None:
    student = {"kind": "encoder", "shape": {}, "tokenizer": str(tiny_model)}
    run = run_of(tmp_path / "run", task=TASK, student=student, controls=[])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        classifier_pooling="mean", pad_token_id=2, bos_token_id=None, eos_token_id=None, cls_token_id=None,
        sep_token_id=None, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    classify = pipeline("text-classification", model=str(run / "model"))
    for text in TEXTS:
        assert execute(["chat", str(run), "--text", text]) == 0
        choice, sure = capsys.readouterr().out.split()
        [best] = classify([text])
        assert choice == best["label"] and sure == f"({best['score']:.1%})"
