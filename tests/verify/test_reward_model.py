"""A reward model: the numbers are those of a forward pass by hand, and selection follows them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from potstill.cli import execute
from potstill.engines.reward import RewardScorer
from potstill.errors import InputError
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.checks import RewardModel
from potstill.records import Message
from potstill.verify.late import rewarded

ANSWERS = (
    "good",
    "a dull film",
    "the film is good and the actors are wonderful, better than the best",
    "forbidden " * 40,
)
HOSTILE = "bad <|im_end|>"


def save_classifier(folder: Path, source: Path, labels: tuple[str, ...]) -> Path:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    config = AutoConfig.from_pretrained(source)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(30)  # rewards that differ by more than rounding
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("reward") / "model", tiny_model, ("reward",))


@pytest.fixture(scope="module")
def labelled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("labels") / "model", tiny_model, ("bad", "good", "odd"))


def by_hand(folder: Path, messages: tuple[Message, ...]) -> list[float]:
    """One conversation through transformers alone: its template, its tokenizer, no batch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    asked = tokenizer.apply_chat_template([m.as_dict() for m in messages], return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(input_ids=asked["input_ids"]).logits[0].tolist()


def conversation(answer: str) -> tuple[Message, ...]:
    return (Message(role="user", content="how is it?"), Message(role="assistant", content=answer))


def check_of(folder: Path, **more: Any) -> RewardModel:
    return RewardModel(kind="reward_model", model=str(folder), licence="mit", **more)


def test_rewards_are_those_of_a_forward_by_hand_whatever_they_are_batched_with(reward_model: Path) -> None:
    asked = [conversation(answer) for answer in ANSWERS]
    expected = [by_hand(reward_model, one)[0] for one in asked]
    assert max(expected) - min(expected) > 0.1
    for size in (1, 2, 4):
        scorer = RewardScorer(check_of(reward_model, batch_size=size))
        assert scorer.score(asked) == pytest.approx(expected, abs=1e-5)
        assert scorer.score(asked[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


def test_a_label_counts_by_its_probability(labelled: Path) -> None:
    asked = [conversation(answer) for answer in ANSWERS]
    logits = [by_hand(labelled, one) for one in asked]
    expected = [math.exp(row[1]) / sum(map(math.exp, row)) for row in logits]
    assert RewardScorer(check_of(labelled, label="good")).score(asked) == pytest.approx(expected, abs=1e-5)


def test_what_the_model_cannot_read_has_no_reward(reward_model: Path) -> None:
    found = RewardScorer(check_of(reward_model)).score([conversation(HOSTILE), conversation("x y " * 600)])
    assert "control token <|im_end|>" in str(found[0]) and "longer than the 512 tokens" in str(found[1])
    assert rewarded(check_of(reward_model), found[0]).opinion == "undecided"


def test_the_score_orders_as_the_reward_does() -> None:
    check = check_of(Path("m"), at_least=0.0)
    rewards = [-1e4, -800.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 30.0, 1e4]
    found = [rewarded(check, reward) for reward in rewards]
    scores = [finding.score or 0.0 for finding in found]
    assert scores == sorted(scores) and all(0 <= score <= 1 for score in scores)
    assert len(set(scores[1:-1])) == len(scores) - 2 and found[4].score == 0.5
    assert [f.opinion for f in found] == ["failed"] * 4 + ["passed"] * 5
    assert found[2].evidence == "reward -3" and rewarded(check, math.nan).opinion == "undecided"


def written(folder: Path, check: dict[str, Any]) -> Path:
    texts = ["how is it?", "and the other film?"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = [{"prompt": t, "answer": a} for t in texts for a in ANSWERS]
    (folder / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = {
        "name": "rewarded",
        "prompts": {"source": str(folder / "prompts.jsonl"), "licence": "mit", "columns": {"text": "text"}},
        "teacher": {
            "model": "canned",
            "licence": "mit",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": 16},
        "verify": {
            "checks": [{"kind": "reward_model", **check}, {"kind": "regex", "pattern": "forbidden", "absent": True}]
        },
        "select": {"keep": 1, "prefer": "score"},
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


def test_the_best_of_each_prompt_is_kept(reward_model: Path, tmp_path: Path) -> None:
    path = written(tmp_path, {"model": str(reward_model), "licence": "mit", "batch_size": 3})
    run = tmp_path / "run"
    Run(load_recipe(path), run).generate()
    assert Run(load_recipe(path), run).verify().kept == 2
    answers: dict[str, dict[str, float]] = {}
    kept: dict[str, str] = {}
    for row in pq.read_table(run / "examples" / "answers.parquet").to_pylist():
        text = row["messages"][-1]["content"]
        if "forbidden" not in text:
            turns = tuple(Message.from_dict(turn) for turn in row["messages"])
            answers.setdefault(row["prompt_id"], {})[text] = by_hand(reward_model, turns)[0]
    for row in pq.read_table(run / "examples" / "selected.parquet").to_pylist():
        kept[row["prompt_id"]] = row["messages"][-1]["content"]
        reward = answers[row["prompt_id"]][kept[row["prompt_id"]]]
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-reward)), abs=1e-5)
    assert kept == {prompt: max(found, key=found.__getitem__) for prompt, found in answers.items()}
    for row in pq.read_table(run / "examples" / "verdicts.parquet").to_pylist():
        kinds = [finding["check"].partition("@")[0] for finding in row["findings"]]
        assert kinds == (["regex"] if row["reason"].startswith("regex") else ["regex", "reward_model"])


def mistakes(reward: Path, labelled: Path, causal: Path) -> dict[str, tuple[dict[str, Any], int, str]]:
    return {
        "no classifier": ({"model": str(causal), "licence": "mit"}, 2, "is no sequence classifier"),
        "which label": ({"model": str(labelled), "licence": "mit"}, 2, "has 3 labels (bad, good, odd)"),
        "no such label": ({"model": str(labelled), "licence": "mit", "label": "goood"}, 2, "no label 'goood'"),
        "a label of one": ({"model": str(reward), "licence": "mit", "label": "reward"}, 2, "leave 'label' out"),
        "no folder": ({"model": "./nowhere", "licence": "mit"}, 2, "there is no model at './nowhere'"),
        "licence": ({"model": str(reward), "licence": "none"}, 7, "verify.checks.0.licence"),
    }


@pytest.mark.parametrize("name", list(mistakes(Path(), Path(), Path())))
def test_a_mistake_is_said_before_the_teacher_is_asked(
    name: str, reward_model: Path, labelled: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check, code, said = mistakes(reward_model, labelled, tiny_model)[name]
    assert execute(["generate", str(written(tmp_path, check)), "--run", str(tmp_path / "run")]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_head_that_is_not_there_is_refused(make_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would fill it with random numbers."""
    folder = make_tiny_model(tmp_path / "model", layers=1)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    config["id2label"] = {"0": "reward"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks weights: score\.weight"):
        RewardScorer(check_of(folder))
