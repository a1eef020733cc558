"""Every arm of a task with choices on the test prompts: a ledger each, resumed where it was killed; one scores.json."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices_by_hand import BAD, GOOD, answer_by_hand, knows, recipe_in
from transformers import AutoModelForCausalLM

from potstill.errors import InputError
from potstill.evaluate.answers import answer_choices
from potstill.evaluate.base import base_student
from potstill.models.encoder import initial_encoder, load_encoder
from potstill.models.load import codec_of, compute_dtype
from potstill.models.save import save_model
from potstill.pipeline import Run
from potstill.recipe import Recipe
from potstill.recipe.student import Student
from potstill.records import Progress, Prompt
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.store.stages import Stages
from potstill.text.tokens import choice_ids
from potstill.verify.calibrate import log_softmax

ENCODER = {"kind": "encoder", "shape": {"layers": 1, "hidden": 16, "heads": 2}}

ROUNDING = 1e-4 if compute_dtype() == torch.float32 else 0.05
"""Of a prompt alone beside the same one in its batch."""


@dataclass(frozen=True)
class Made:
    recipe: Recipe
    folder: Path
    scores: dict[str, Any]


def with_arms(folder: Path, model: Path, **changes: Any) -> Recipe:
    encoder = {**ENCODER, "tokenizer": str(model)}
    return recipe_in(
        folder,
        student={"start": str(model), "licence": "mit", "layers": 2},
        arms={"small": {"student.layers": 1}, "reader": {"student": encoder}},
        controls=["base", "tfidf"],
        **changes,
    )


def pretend_trained(recipe: Recipe, folder: RunFolder, model: Path) -> None:
    """Arms as training leaves them: folders, what is known of them, and the stage that is finished."""
    settings = recipe.student
    assert isinstance(settings, Student)
    for arm, layers in (("student", [0, 1]), ("small", [0])):
        folder.arm(arm).mkdir(parents=True, exist_ok=True)
        (folder.arm(arm) / "trained.json").write_text(json.dumps({"layers": layers}))
    made, codec, start = base_student(settings, folder, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    for arm in ("student", "small"):
        end = codec.end_of_turn("x")
        save_model(made, codec, tokenizer_from=start, end_of_turn=end, max_new_tokens=12, to=folder.arm_model(arm))
    reader = next(arm for arm in arms_named(recipe, "reader"))
    initial_encoder(reader, (BAD, GOOD), seed=3).save(folder.arm_model("reader"))
    with Stages(folder.ledger) as stages:
        for arm in ("student", "small", "reader"):
            stages.finish(f"train:{arm}", f"trained {arm}", 1.0)


def arms_named(recipe: Recipe, name: str) -> list[Any]:
    from potstill.recipe import arms_of

    return [arm.student for arm in arms_of(recipe) if arm.name == name]


def made_in(folder: Path, model: Path, **changes: Any) -> tuple[Recipe, RunFolder]:
    recipe = with_arms(folder, model, **changes)
    run = answer_by_hand(recipe, folder / "run")
    Run(recipe, run.path).verify()
    pretend_trained(recipe, run, model)
    return recipe, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path]) -> Made:
    place = tmp_path_factory.mktemp("arms")
    recipe, run = made_in(place, make_tiny_model(place / "model"))
    return Made(recipe, run.path, Run(recipe, run.path).evaluate())


def answers(folder: Path, arm: str) -> dict[str, tuple[Prompt, tuple[float, ...]]]:
    with Requests(folder / "test" / arm / "ledger.sqlite") as requests:
        return {p.id: (p, s.choice_logprobs or ()) for p, s in requests.samples()}


def attempts(folder: Path, arm: str) -> int:
    with sqlite3.connect(folder / "test" / arm / "ledger.sqlite") as db:
        return db.execute("SELECT count(*) FROM attempts").fetchone()[0]


def timeless(scores: dict[str, Any]) -> dict[str, Any]:
    measured = ("prompts_per_second", "peak_memory_bytes")
    arms = {arm: {n: s for n, s in values.items() if n not in measured} for arm, values in scores["arms"].items()}
    return {**{name: value for name, value in scores.items() if name != "cost"}, "arms": arms}


def test_every_arm_is_in_scores_and_the_teacher_was_not_asked_again(made: Made) -> None:
    arms = ["teacher", "teacher_raw", "student", "small", "reader", "base", "tfidf"]
    scores = made.scores
    assert list(scores["arms"]) == arms and scores == json.loads((made.folder / "scores.json").read_text())
    assert set(scores["paired"]) == {f"student - {arm}" for arm in arms if arm != "student"}
    assert set(scores["gap_recovered"]) == {"small", "reader", "base", "tfidf"}
    for arm, metrics in scores["arms"].items():
        assert {"accuracy", "agreement", "kl_to_teacher", "ece", "rank_correlation"} <= set(metrics), arm
        assert metrics["accuracy"]["n"] == 20 and all(set(s) == {"value", "n", "ci95"} for s in metrics.values())
    assert attempts(made.folder, "teacher") == 0 and len(answers(made.folder, "teacher")) == 20
    assert scores["task"] == "choice"
    assert scores["trained"] == {arm: f"trained {arm}" for arm in ("student", "small", "reader")}
    assert scores["teacher"] == {"model": "by-hand", "licence": "apache-2.0"}
    assert scores["calibration"] == json.loads((made.folder / "calibration.json").read_text())
    assert scores["majority"]["accuracy"] >= 0.5 and scores["wrong"] == {}


def test_the_teachers_scores_are_those_of_its_answers(made: Made) -> None:
    asked = answers(made.folder, "teacher")
    raw = [knows(p) > 0.5 for p, _ in asked.values()]
    right = [p.reference == GOOD for p, _ in asked.values()]
    arms = made.scores["arms"]
    assert arms["teacher_raw"]["accuracy"]["value"] == np.mean([a == b for a, b in zip(raw, right, strict=True)])
    assert arms["teacher"]["agreement"]["value"] == 1.0 and arms["teacher"]["kl_to_teacher"]["value"] == 0.0
    assert arms["teacher"]["accuracy"]["value"] > arms["teacher_raw"]["accuracy"]["value"]


def test_a_models_answers_are_what_its_folder_says(made: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(made.folder / "model", dtype=torch.float32)
    codec = codec_of(made.folder / "model", None, name="student")
    choices = choice_ids(codec, (BAD, GOOD))
    for prompt, logprobs in list(answers(made.folder, "student").values())[:5]:
        said, _ = answer_choices(model, [codec.prefix(prompt.messages)], choices, batch_tokens=1024)
        assert logprobs == pytest.approx(said[0].tolist(), abs=ROUNDING)
    arms = made.scores["arms"]
    lengths = [len(codec.prefix(p.messages)) for p, _ in answers(made.folder, "student").values()]
    assert arms["student"]["tokens_per_prompt"]["value"] == np.mean(lengths)
    assert arms["student"]["exact_answers"]["n"] == arms["small"]["exact_answers"]["n"] == 4
    assert not {"exact_answers"} & (set(arms["reader"]) | set(arms["base"]) | set(arms["tfidf"]))
    assert arms["student"]["parameters"]["value"] == arms["base"]["parameters"]["value"] > 0


def test_the_base_is_the_student_before_its_first_step(made: Made) -> None:
    assert isinstance(made.recipe.student, Student)
    model, codec, _ = base_student(made.recipe.student, RunFolder(made.folder), seed=0)
    assert model.config.num_hidden_layers == 2
    for prompt, logprobs in list(answers(made.folder, "base").values())[:3]:
        ids = [codec.prefix(prompt.messages)]
        said, _ = answer_choices(model, ids, choice_ids(codec, (BAD, GOOD)), batch_tokens=1024)
        assert logprobs == pytest.approx(said[0].tolist(), abs=ROUNDING)
    assert answers(made.folder, "base") != answers(made.folder, "student")


def test_an_encoder_arm_answers_as_its_folder_does(made: Made) -> None:
    classifier = load_encoder(made.folder / "arms" / "reader" / "model")
    for prompt, logprobs in list(answers(made.folder, "reader").values())[:5]:
        logits = classifier.model(**classifier.encode([prompt.text])).logits
        assert logprobs == pytest.approx(torch.log_softmax(logits[0], -1).tolist(), abs=1e-5)
    parameters = sum(value.numel() for value in classifier.model.parameters())
    assert made.scores["arms"]["reader"]["parameters"]["value"] == parameters


def test_tfidf_learns_the_kept_labels(made: Made) -> None:
    """They say "dull" is bad and "wonderful" is good, mostly."""
    assert made.scores["arms"]["tfidf"]["accuracy"]["value"] >= 0.8
    said = np.array([logprobs for _, logprobs in answers(made.folder, "tfidf").values()])
    assert np.exp(log_softmax(said)).sum(-1).tolist() == pytest.approx([1.0] * 20)


@pytest.mark.parametrize("killed", ["student", "reader"])
def test_a_killed_evaluation_goes_on_in_the_middle_of_an_arm(killed: str, made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made.folder, folder)
    shutil.rmtree(folder / "test")
    few = made.recipe.model_copy(update={"evaluate": made.recipe.evaluate.model_copy(update={"batch_tokens": 120})})  # type: ignore[union-attr]
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)

    def stop(progress: Progress) -> None:
        if progress.what == killed and 4 <= progress.done < 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(few, folder, stop).evaluate()
    assert 4 <= attempts(folder, killed) < 20
    assert timeless(Run(few, folder).evaluate()) == timeless(Run(few, whole).evaluate())
    assert attempts(folder, killed) == attempts(whole, killed) == 20
    assert answers(folder, killed) == answers(whole, killed)


def test_answers_of_earlier_weights_do_not_count(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made.folder, folder)
    with Stages(folder / "ledger.sqlite") as stages:
        stages.finish("train:small", "trained anew", 1.0)
    seen: list[str] = []
    Run(made.recipe, folder, lambda p: seen.append(f"{p.what} {p.note}")).evaluate()
    assert attempts(folder, "small") == 40 and attempts(folder, "student") == 20
    assert "student already done" in seen and "small already done" not in seen


def test_prompts_without_an_answer_of_the_teacher_compare_nobody(made: Made, tmp_path: Path) -> None:
    recipe = with_arms(tmp_path, Path(made.recipe.student.start))  # type: ignore[union-attr]
    folder = tmp_path / "run"
    shutil.copytree(made.folder, folder)
    with sqlite3.connect(folder / "test" / "teacher" / "ledger.sqlite") as db:
        db.execute("UPDATE answers SET given_up = 'refused' WHERE question < 3")
    with Stages(folder / "ledger.sqlite") as stages:
        stages.forget("evaluate")
    scores = Run(made.recipe, folder).evaluate()
    assert scores["wrong"] == {"teacher": {"no answer": 2}} and recipe.name == scores["recipe"]
    assert {metrics["accuracy"]["n"] for metrics in scores["arms"].values()} == {18}


def test_checks_may_say_what_is_right_in_the_place_of_a_reference(tmp_path: Path, tiny_model: Path) -> None:
    evaluate = {"resamples": 100, "generate_prompts": 2, "checks": [{"kind": "exact"}], "processes": 1}
    recipe, run = made_in(tmp_path, tiny_model, evaluate=evaluate)
    scores = Run(recipe, run.path).evaluate()
    plain = {**evaluate, "checks": []}
    assert scores["wrong"]["student"] == {"exact: not the reference": round(20 * (1 - value(scores, "student")))}
    other = with_arms(tmp_path, tiny_model, evaluate=plain)
    again = Run(other, run.path).evaluate()
    assert {arm: value(again, arm) for arm in again["arms"]} == {arm: value(scores, arm) for arm in scores["arms"]}


def value(scores: dict[str, Any], arm: str) -> float:
    return scores["arms"][arm]["accuracy"]["value"]


def test_test_prompts_without_references_are_refused_before_anybody_is_asked(tmp_path: Path, tiny_model: Path) -> None:
    recipe, run = made_in(tmp_path, tiny_model)
    (tmp_path / "more.jsonl").write_text('{"text": "who knows", "label": "good"}\n{"text": "nobody", "label": null}\n')
    columns = {"text": "text", "reference": "label", "id": "text"}
    source = {"source": str(tmp_path / "more.jsonl"), "licence": "mit", "columns": columns}
    prompts = {"source": str(tmp_path / "reviews.jsonl"), "licence": "mit", "columns": {"text": "text"}}
    other = with_arms(tmp_path, tiny_model, prompts=prompts, evaluate={"prompts": source, "resamples": 100})
    with pytest.raises(InputError, match="prompt 'nobody' has no reference: nobody says which answer is right"):
        Run(other, run.path).evaluate()
    assert recipe.name == other.name and not run.test("teacher").exists()


def test_the_base_of_an_encoder_is_the_untrained_encoder(tmp_path: Path, tiny_model: Path) -> None:
    student = {**ENCODER, "tokenizer": str(tiny_model)}
    recipe = recipe_in(tmp_path, student=student, controls=["base"])
    run = answer_by_hand(recipe, tmp_path / "run")
    Run(recipe, run.path).verify()
    shape = arms_named(recipe, "student")[0]
    initial_encoder(shape, (BAD, GOOD), seed=recipe.seed).save(run.model)
    with Stages(run.ledger) as stages:
        stages.finish("train:student", "trained", 1.0)
    scores = Run(recipe, run.path).evaluate()
    assert list(scores["arms"]) == ["teacher", "teacher_raw", "student", "base"]
    mine, base = answers(run.path, "student"), answers(run.path, "base")
    for prompt_id, (_, logprobs) in mine.items():  # it was saved before its first step
        assert base[prompt_id][1] == pytest.approx(logprobs, abs=1e-6)
    assert math.isfinite(scores["arms"]["base"]["kl_to_teacher"]["value"])


def test_a_teacher_in_this_process_is_timed_and_measured(tmp_path: Path, tiny_model: Path) -> None:
    teacher = {"model": str(tiny_model), "licence": "mit", "engine": {"kind": "local"}}
    recipe = recipe_in(
        tmp_path,
        teacher=teacher,
        verify=None,
        controls=[],
        student={"start": str(tiny_model), "licence": "mit", "layers": 2},
    )
    run = RunFolder(tmp_path / "run")
    Run(recipe, run.path).generate()
    Run(recipe, run.path).verify()
    (run.arm("student")).mkdir(parents=True)
    (run.arm("student") / "trained.json").write_text('{"layers": [0, 1]}')
    assert isinstance(recipe.student, Student)
    made, codec, start = base_student(recipe.student, run, seed=0)
    end = codec.end_of_turn("x")
    save_model(made, codec, tokenizer_from=start, end_of_turn=end, max_new_tokens=12, to=run.model)
    with Stages(run.ledger) as stages:
        stages.finish("train:student", "trained", 1.0)
    scores = Run(recipe, run.path).evaluate()
    measured = scores["arms"]["teacher"]
    assert {"prompts_per_second_uncached", "tokens_per_prompt_cached", "parameters"} <= set(measured)
    assert measured["tokens_per_prompt"]["value"] > measured["tokens_per_prompt_cached"]["value"] > 0
    assert scores["cost"]["per_1000_answers"]["teacher_seconds"] > 0 and scores["cost"]["tokens"] > 0
    # the test split is answered by whoever evaluates, once
    assert len(answers(run.path, "teacher")) == 20
