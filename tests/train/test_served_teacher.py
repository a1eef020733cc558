"""Soft targets from a teacher behind a server, which here is a small HTTP server around a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from json_server import serving
from test_on_policy import recipe_on_policy
from transformers import AutoConfig, AutoModelForCausalLM

from potstill.cli import execute
from potstill.models.load import fingerprint
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.store.metrics import Metrics

SOFT = {"kind": "logit_kd", "divergence": "forward_kl", "alpha": 0.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path]) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("teacher") / "model", seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # a random model says next to nothing: give it opinions
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def served(teacher: Path) -> Iterator[tuple[str, list[int]]]:
    """Its address, and the status it gives to a request that it sees first (empty: always 200)."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    faults: list[int] = []
    seen: set[str] = set()

    def answer(_: str, asked: Any) -> tuple[int, object]:
        words = json.dumps(asked)
        if faults and words not in seen:
            seen.add(words)
            return faults[0], {"error": "busy"}
        ids, k = asked["prompt"], asked["prompt_logprobs"]
        with torch.no_grad():
            logp_LV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        listed: list[object] = [None]
        for at, token in enumerate(ids[1:]):
            order = logp_LV[at].argsort(descending=True).tolist()
            wanted = {*order[:k], token}
            listed.append({str(t): {"logprob": logp_LV[at, t].item(), "rank": order.index(t) + 1} for t in wanted})
        return 200, {"choices": [{"prompt_logprobs": listed}], "usage": {}}

    with serving(answer) as address:
        yield f"{address}/v1", faults


def scored_by(url: str, model: Path, *, k: int) -> dict[str, object]:
    engine = {"kind": "server", "url": url, "retry_seconds": 0.01}
    return {"model": "served", "licence": "mit", "tokenizer": str(model), "engine": engine, "k": k}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in Metrics(run / "metrics.jsonl").rows("student")]


def taught(path: Path, run: Path, *overrides: str) -> list[float]:
    recipe = load_recipe(path, overrides)
    Run(recipe, run).generate()
    Run(recipe, run).verify()
    Run(recipe, run).train()
    return losses(run)


def test_the_whole_vocabulary_served_is_the_teacher_itself(
    tmp_path: Path, tiny_model: Path, teacher: Path, served: tuple[str, list[int]]
) -> None:
    lessons = {"method": SOFT, "on_policy": None, "epochs": 1}
    path = recipe_on_policy(tmp_path, tiny_model, teacher, **lessons)
    here = taught(path, tmp_path / "here")
    assert here[0] > 0.1
    whole = AutoConfig.from_pretrained(teacher).vocab_size
    path = recipe_on_policy(
        tmp_path, tiny_model, tiny_model, **lessons, scored_by=scored_by(served[0], tiny_model, k=whole)
    )
    assert taught(path, tmp_path / "there") == pytest.approx(here, rel=5e-3)  # half precision, where the machine has it
    kept = [f"train.signal={{kind: top_k, k: {whole}}}"]
    served[1].append(503)  # and is asked again
    cached = taught(path, tmp_path / "kept", *kept)
    assert cached == pytest.approx(here, rel=0.05)


def test_a_student_learns_from_what_a_server_says_of_its_own_answers(
    tmp_path: Path, tiny_model: Path, teacher: Path, served: tuple[str, list[int]]
) -> None:
    before = fingerprint(teacher)
    path = recipe_on_policy(
        tmp_path, tiny_model, tiny_model, scored_by=scored_by(served[0], tiny_model, k=20), epochs=3
    )
    found = taught(path, tmp_path / "run")
    assert sum(found[-4:]) / 4 < 0.8 * sum(found[:4]) / 4
    assert fingerprint(teacher) == before


def test_a_policy_gradient_reads_the_written_tokens_alone(
    tmp_path: Path, tiny_model: Path, teacher: Path, served: tuple[str, list[int]]
) -> None:
    method = {"kind": "policy_gradient"}
    lessons = {"method": method, "epochs": 1, "on_policy": {"max_tokens": 6, "warm_up": 0.0, "slots": 5}}
    here = taught(recipe_on_policy(tmp_path, tiny_model, teacher, **lessons), tmp_path / "here")
    path = recipe_on_policy(tmp_path, tiny_model, teacher, **lessons, scored_by=scored_by(served[0], tiny_model, k=1))
    there = taught(path, tmp_path / "there")
    assert there[0] == pytest.approx(here[0], rel=5e-3) != 0  # from then on rounding may draw another token


def test_a_server_that_is_not_there_is_heard_of_at_once(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_on_policy(
        tmp_path, tiny_model, tiny_model, scored_by=scored_by("http://127.0.0.1:9/v1", tiny_model, k=2)
    )
    recipe = load_recipe(path)
    Run(recipe, tmp_path / "run").generate()
    Run(recipe, tmp_path / "run").verify()
    assert execute(["train", str(path), "--run", str(tmp_path / "run")]) == 4
    error = capsys.readouterr().err
    assert "the server did not score: no connection" in error and error.count("\n") == 1


MISTAKES = {
    "no tokenizer": ("{model: m, licence: mit, engine: {kind: server, url: 'http://h/v1'}}", "name a hub id or folder"),
    "no engine": ("{model: m, licence: mit, tokenizer: m}", "'tokenizer' goes with an 'engine'"),
    "another form": (
        "{model: m, licence: mit, tokenizer: m, engine: {kind: server, url: 'http://h/v1', form: anthropic}}",
        "cannot score tokens",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_about_the_server_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, said = MISTAKES[name]
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model)
    assert execute(["train", str(path), "--run", str(tmp_path / "run"), "--set", f"train.scored_by={value}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_a_server_cannot_give_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, scored_by=scored_by("http://h/v1", tiny_model, k=2))
    for change, said in (
        (["train.on_policy=null", "train.signal={kind: hidden}"], "live or top_k"),
        (["train.method.temperature=2"], "a server scores at temperature 1"),
    ):
        words = ["train", str(path), "--run", str(tmp_path / "run"), *(w for c in change for w in ("--set", c))]
        assert execute(words) == 2
        assert said in capsys.readouterr().err
