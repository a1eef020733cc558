"""A student that writes its own answers behind a server, which here is a small HTTP server around a real model that
takes its weights from a folder, as vLLM does; the real one is in tests/engines/test_vllm.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from json_server import serving
from student_runs import equal, kept_answers, logged, refusal, taught, weights
from test_on_policy import recipe_on_policy
from transformers import AutoModelForCausalLM

from potstill.cli import execute
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.models.lora import adapt, merged, plain_weights
from potstill.models.save import save_weights
from potstill.models.student import take_layers
from potstill.pipeline import Run
from potstill.plan import plan
from potstill.recipe import load_recipe
from potstill.recipe.student import Lora

LORA = {"rank": 4, "alpha": 8}


@dataclass
class Vllm:
    """What the server was told, and what it does wrong."""

    url: str = ""
    model: Any = None
    loads: int = 0
    resets: int = 0
    paths: list[str] = field(default_factory=list[str])
    deaf: bool = False  # takes no weights: its own stay
    refuses: str = ""  # the path that it does not know

    def reply(self, path: str, asked: Any) -> Any:
        self.paths.append(path)
        match path:
            case "/collective_rpc":
                assert asked["method"] == "reload_weights"
                self.loads += 1
                if not self.deaf or self.model is None:
                    folder = asked["kwargs"]["weights_path"]
                    self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                return {"results": [None]}
            case "/reset_prefix_cache":
                self.resets += 1
                return {"success": True}
            case _:
                return self.written(asked)

    def written(self, asked: Any) -> Any:
        prompt, most = asked["prompt"], asked["max_tokens"]
        rollouts = Rollouts(self.model, slots=4, capacity_tokens=len(prompt) + most, end_ids=asked["stop_token_ids"])
        how = Sampling(temperature=asked["temperature"], top_p=asked["top_p"], seed=asked["seed"])
        found = rollouts.roll_out([tuple(prompt)], n=asked["n"], sampling=how, max_new_tokens=most)
        return {
            "choices": [
                {"index": one.index, "token_ids": one.ids, "logprobs": {"token_logprobs": one.logp}} for one in found
            ]
        }


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    state, one_at_a_time = Vllm(), threading.Lock()

    def answer(path: str, asked: Any) -> tuple[int, object]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "student"}]}
        if path == state.refuses:
            return 404, {"detail": "Not Found"}
        with one_at_a_time:
            return 200, state.reply(path, asked)

    with serving(answer) as address:
        state.url = f"{address}/v1"
        yield state


def through(vllm: Vllm, **how: Any) -> dict[str, Any]:
    engine = {"kind": "vllm", "url": vllm.url, "retry_seconds": 0.01}
    return {"max_tokens": 6, "warm_up": 0.0, "engine": engine, **how}


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_server_writes_with_the_students_weights_as_they_are(
    lora: dict[str, Any] | None,
    tmp_path: Path,
    tiny_model: Path,
    make_tiny_model: Callable[..., Path],
    vllm: Vllm,
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=2, on_policy=through(vllm, steps_per_generation=2))
    recipe = load_recipe(path, [f"student.lora={json.dumps(lora)}"])
    kept_answers(recipe, tmp_path / "run")
    made = Run(recipe, tmp_path / "run").train()["student"]
    steps = logged(tmp_path / "run")
    assert len(steps) == 10 and vllm.loads == vllm.resets == 1 + 5  # one to see that it can
    gaps = [row["log_probability_gap"] for row in steps]
    fresh, waited = gaps[::2], gaps[1::2]
    assert max(fresh) < 0.02 and max(waited) > 3 * max(fresh)
    found = weights(made)
    assert not equal(found, vllm.model.state_dict())  # the last step was taken after the last call
    assert found.keys() == vllm.model.state_dict().keys()
    assert (tmp_path / "run" / "arms" / "student" / "writer" / "tokenizer.json").is_file()


def test_a_server_that_does_not_take_the_weights_is_found_out(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], vllm: Vllm, capsys: Any
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    vllm.deaf = True
    guards = {"patience": 2, "log_probability_gap": 0.05}
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=6, on_policy=through(vllm, guards=guards))
    recipe = load_recipe(path)
    kept_answers(recipe, tmp_path / "run")
    said = refusal("train", path, ["train.learning_rate=0.03"], capsys, code=8)
    assert "the gap between writer and trainer" in said


def test_answers_in_hand_survive_a_stop(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], vllm: Vllm
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    own = through(vllm, steps_per_generation=4)
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=2, checkpoint_seconds=1e-6, on_policy=own)
    recipe = load_recipe(path)
    whole = taught(recipe, tmp_path / "a")
    moved = load_recipe(path, ["train.on_policy.engine.url=http://127.0.0.1:9/v1"])
    assert Run(moved, tmp_path / "a").train()["student"]  # done: another address makes no other student
    loads = vllm.loads
    assert equal(whole, taught(recipe, tmp_path / "b", stops=[2, 6, 7]))
    assert vllm.loads - loads == loads + 3  # nothing was written twice: each start looks once whether it can


def test_nobody_there_is_told_how_to_start_it(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"kind": "vllm", "url": "http://127.0.0.1:9/v1"}
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, on_policy={"engine": engine})
    kept_answers(load_recipe(path), tmp_path / "run")
    said = refusal("train", path, [], capsys, code=4)
    folder = (tmp_path / "run" / "arms" / "student" / "writer").resolve()
    assert "no rollout server answers at http://127.0.0.1:9/v1" in said
    assert f"VLLM_SERVER_DEV_MODE=1 vllm serve {folder} --served-model-name student" in said and "--port 9" in said
    assert (folder / "config.json").is_file()


def test_a_folder_of_somebody_elses_is_not_replaced(
    tmp_path: Path, tiny_model: Path, vllm: Vllm, capsys: pytest.CaptureFixture[str]
) -> None:
    own = through(vllm)
    own["engine"]["weights_folder"] = str(tmp_path / "theirs")
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, epochs=1, on_policy=own)
    kept_answers(load_recipe(path), tmp_path / "run")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("all of it")
    said = refusal("train", path, [], capsys)
    assert "holds something else and would be replaced" in said and not vllm.paths
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "all of it"
    (tmp_path / "theirs" / "thesis.txt").unlink()  # an empty one is fine, and so is the one that an earlier start made
    recipe = load_recipe(path)
    Run(recipe, tmp_path / "run").train()
    (tmp_path / "run" / "arms" / "student" / "trained.json").unlink()
    Run(recipe, tmp_path / "run").train()
    assert (tmp_path / "theirs" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", ["/collective_rpc", "/reset_prefix_cache"])
def test_a_server_without_its_development_mode_is_told_so(
    path: str, tmp_path: Path, tiny_model: Path, vllm: Vllm, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.refuses = path
    recipe = recipe_on_policy(tmp_path, tiny_model, tiny_model, on_policy=through(vllm))
    kept_answers(load_recipe(recipe), tmp_path / "run")
    said = refusal("train", recipe, [], capsys, code=4)
    assert "status 404" in said and "start it again: VLLM_SERVER_DEV_MODE=1 vllm serve" in said


def test_a_token_that_stands_for_nothing_stops_the_run(
    tmp_path: Path, tiny_model: Path, vllm: Vllm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, on_policy=through(vllm))
    kept_answers(load_recipe(path), tmp_path / "run")
    vllm.written = lambda asked: {  # pyright: ignore[reportAttributeAccessIssue]
        "choices": [{"index": 0, "token_ids": [99_999], "logprobs": {"token_logprobs": [-1.0]}}]
    }
    assert "drew token 99999" in refusal("train", path, [], capsys, code=4)


def test_adapters_are_saved_as_what_they_add(tmp_path: Path, tiny_model: Path) -> None:
    model = take_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), (0, 2, 3))
    adapted = adapt(model, Lora(rank=4, alpha=8.0), seed=1)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_weights(model, tmp_path)
    assert equal(before, model.state_dict())
    found, whole = plain_weights(model), merged(adapted).state_dict()
    assert found.keys() == whole.keys() == weights(tmp_path).keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=1e-6)


def test_check_names_the_server_and_leaves_its_memory_out(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"kind": "vllm", "url": "http://127.0.0.1:9/v1"}
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model, on_policy={"engine": engine})
    there = plan(load_recipe(path)).sizes
    here = plan(load_recipe(path, ["train.on_policy.engine=null"])).sizes
    assert there and here and there.memory and here.memory
    assert there.memory.parts["own_answers"] == 0 < here.memory.parts["own_answers"]
    assert execute(["check", str(path)]) == 0
    assert "own answers: written by vLLM at http://127.0.0.1:9/v1" in capsys.readouterr().out
