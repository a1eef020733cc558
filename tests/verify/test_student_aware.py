"""Selection that asks the student, and weights that say how hard a prompt is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from potstill.cli import execute
from potstill.engines.likelihood import mean_nats
from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.checks import Length, Verify
from potstill.recipe.select import Select
from potstill.recipe.whole import Recipe
from potstill.records import Finding, Message, Prompt, Sample, unwatched
from potstill.store.examples import read_examples
from potstill.store.run import RunFolder
from potstill.verify.select import Judged, objections, settle, weight_of
from potstill.verify.stage import Opinions, verify_answers

ANSWERS = ["good", "bad film nap", "zzyzx qqq", "the script gives them nothing", "a <|im_end|> b", ""]


def recipe_in(folder: Path, model: Path, **select: Any) -> Recipe:
    prompts = [f"say something {i}" for i in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"q": p}) + "\n" for p in prompts))
    lines = [{"prompt": p, "answer": a} for p in prompts for a in ANSWERS]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "name": "say",
        "prompts": {"source": str(folder / "prompts.jsonl"), "licence": "mit", "columns": {"text": "q"}},
        "teacher": {
            "model": "canned",
            "licence": "mit",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": 5},
        "verify": {"checks": [{"kind": "length"}], "processes": 1},
        "select": select,
        "student": {"start": str(model), "licence": "mit", "layers": 2},
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(values, file)
    return load_recipe(path)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "examples" / f"{name}.parquet").to_pylist()


def test_the_least_surprising_answer_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    recipe, run = recipe_in(tmp_path, tiny_model, prefer="learnable"), tmp_path / "run"
    Run(recipe, run).generate()
    Run(recipe, run).verify()
    # an independent reference: the first two layers, one answer at a time, in double precision
    model = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    codec = codec_of(tiny_model, None, name="student")
    texts = {(r["prompt_id"], r["index"]): r["messages"] for r in rows(run, "answers")}

    def reference(messages: list[dict[str, Any]]) -> float:
        *asked, said = map(Message.from_dict, messages)
        prefix, target = codec.prefix(asked), codec.turn(asked, said)
        logp = torch.log_softmax(model(torch.tensor([[*prefix, *target]])).logits[0].double(), -1)
        return -sum(logp[len(prefix) - 1 + i, token].item() for i, token in enumerate(target)) / len(target)

    passed: dict[str, list[tuple[float, int]]] = {}
    for verdict in rows(run, "verdicts"):
        messages = texts[verdict["prompt_id"], verdict["index"]]
        if verdict["reason"].startswith("length") or "<|im_end|>" in messages[-1]["content"]:
            assert verdict["student_nats"] is None
            continue
        assert verdict["student_nats"] == pytest.approx(reference(messages), rel=1e-4)
        passed.setdefault(verdict["prompt_id"], []).append((verdict["student_nats"], verdict["index"]))
    best = {prompt: min(found) for prompt, found in passed.items()}
    assert {r["prompt_id"]: (r["student_nats"], r["index"]) for r in rows(run, "selected")} == best
    assert len(best) == 12 and len({index for _, index in best.values()}) > 1
    first = (run / "examples" / "selected.parquet").read_bytes()
    assert execute(["verify", str(tmp_path / "recipe.yaml"), "--run", str(run)]) == 0
    assert (run / "examples" / "selected.parquet").read_bytes() == first


def test_padding_changes_nothing(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    pairs = [((1, 5, 9), (7, 2)), (tuple(range(3, 60)), (8,)), ((4,), tuple(range(10, 40)))]
    together = mean_nats(model, pairs)
    assert together == pytest.approx([mean_nats(model, [pair])[0] for pair in pairs], rel=1e-5)
    assert mean_nats(model, []) == []


def test_without_a_student_nobody_can_be_asked(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_model, prefer="learnable")
    with pytest.raises(InputError, match=r"hand down train\.learnable\.student_nats"):
        nobody = Opinions(grade=lambda _, groups: groups)
        verify_answers(recipe, [], RunFolder(tmp_path / "run"), total=0, watch=unwatched, handed=nobody)
    with pytest.raises(InputError, match="is the student's own opinion of the answers: add 'student'"):
        load_recipe(tmp_path / "recipe.yaml", ["student=null"])
    first = Run(load_recipe(tmp_path / "recipe.yaml", ["select.prefer=first"]), tmp_path / "run")
    first.generate()
    first.verify()
    assert {row["student_nats"] for row in rows(tmp_path / "run", "verdicts")} == {None}


def test_weights_stand_in_every_row_and_come_back(tmp_path: Path, tiny_model: Path) -> None:
    plain, run = recipe_in(tmp_path, tiny_model, keep=5), tmp_path / "run"
    Run(plain, run).generate()
    Run(plain, run).verify()
    selected = run / "examples" / "selected.parquet"
    assert {talk.weight for talk in read_examples(selected)} == {1.0}
    assert {talk.weight for talk in read_examples(run / "examples" / "answers.parquet")} == {1.0}
    weighted = load_recipe(tmp_path / "recipe.yaml", ["select.weight=pass_rate"])
    Run(weighted, run).verify()
    passed: Counter[str] = Counter()
    judged: Counter[str] = Counter()  # empty answers are none
    for verdict in rows(run, "verdicts"):
        judged[verdict["prompt_id"]] += 1
        passed[verdict["prompt_id"]] += not verdict["reason"].startswith("length")
    ids = [row["prompt_id"] for row in rows(run, "selected")]
    expected = [2 * (1 - (passed[i] + 1) / (judged[i] + 2)) for i in ids]
    assert [talk.weight for talk in read_examples(selected)] == pytest.approx(expected)
    assert len(set(expected)) > 1


@given(answers=st.integers(1, 64), data=st.data())
def test_harder_prompts_weigh_more_and_none_weighs_nothing(answers: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(1, answers))
    assert 0 < weight_of(passed, answers) < weight_of(passed - 1, answers) < 2
    assert weight_of(answers, 2 * answers) == pytest.approx(1.0)
    group = [
        Judged(
            prompt=Prompt(id="p", split="train", messages=()),
            sample=Sample(prompt_id="p", text="a", index=i),
            findings=(Finding(opinion="passed" if i < passed else "failed", check="length@1"),),
        )
        for i in range(answers)
    ]
    checks = Verify(checks=(Length(kind="length"),))
    settled, _ = settle(objections(group, checks), Select(keep=answers, weight="pass_rate"), lambda _, __: "")
    assert {one.weight for one in settled if one.kept} == {weight_of(passed, answers)}
