"""Choices from ledger to examples: votes counted, calibrated, checked, rescued; of the training split alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from choices_by_hand import BAD, GOOD, answer_by_hand, knows, recipe_in

from potstill.errors import InputError
from potstill.pipeline import Run
from potstill.records import Prompt, Sample
from potstill.store.examples import read_examples
from potstill.store.requests import Requests
from potstill.verify.calibrate import calibrate, calibrated, fit_bias, fit_temperature, log_softmax, read_calibration
from potstill.verify.votes import choice_in, counted


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "examples" / f"{name}.parquet").to_pylist()


def votes(prompt_id: str, texts: Sequence[str], *, rescue: int = 0) -> list[tuple[Prompt, Sample]]:
    prompt = Prompt(id=prompt_id, split="train", messages=())
    return [
        (prompt, Sample(prompt_id=prompt_id, text=text, index=10 * rescue + i, rescue=rescue))
        for i, text in enumerate(texts)
    ]


def test_votes_become_one_distribution_and_what_is_no_choice_is_mass_outside() -> None:
    asked = [*votes("p", ["good", "Good.", "bad", "who knows"]), *votes("p", ["bad", "bad"], rescue=1)]
    (prompt, own), (_, rescued) = counted(iter(asked), (BAD, GOOD))
    assert (prompt.id, own.text, own.index, rescued.text, rescued.rescue, rescued.index) == ("p", GOOD, 0, BAD, 1, 10)
    assert own.choice_logprobs is not None and rescued.choice_logprobs is not None
    assert np.exp(own.choice_logprobs).tolist() == pytest.approx([1.5 / 5, 2.5 / 5])  # and 1 of 5 on neither
    assert np.exp(rescued.choice_logprobs).tolist() == pytest.approx([2.5 / 3, 0.5 / 3])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("good", GOOD),
        (" GOOD! ", GOOD),
        ("good, because it moves", GOOD),
        ("goodness", None),
        ("not good", None),
        ("", None),
        ("very good", "very good"),
    ],
)
def test_an_answer_is_the_choice_that_it_begins_with(text: str, found: str | None) -> None:
    assert choice_in(text, (BAD, GOOD, "very good")) == found


def test_the_run_learns_its_training_split_calibrated(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    folder = answer_by_hand(recipe, run)
    found = Run(recipe, run).verify()
    with Requests(folder.ledger) as requests:
        asked = list(requests.samples())
    raw = {p.id: np.array(s.choice_logprobs) for p, s in asked}
    train = np.array([raw[p.id] for p, _ in asked if p.split == "train"])
    held = [p for p, _ in asked if p.split == "validation"]
    bias = fit_bias(train, (0.5, 0.5))
    answers = np.array([(BAD, GOOD).index(str(p.reference)) for p in held])
    temperature = fit_temperature(np.array([raw[p.id] for p in held]) + np.array(bias), answers)
    calibration = read_calibration(folder)
    assert (calibration.bias, calibration.temperature) == (bias, temperature)
    selected = rows(run, "selected")
    assert 0 < len(selected) == found.kept < 40 and found.reasons.total() == 40
    assert found.reasons["confidence: not confident enough"] == 40 - found.kept
    for row in selected:
        expected = log_softmax((raw[row["prompt_id"]] + np.array(bias)) / temperature)
        assert row["choice_logprobs"] == expected.tolist() and max(expected) >= math.log(0.7)
        assert row["messages"][-1] == row["messages"][-1] | {"content": (BAD, GOOD)[int(expected.argmax())]}
        assert (row["labelled_by"], row["domain"], row["teacher"]) == ("teacher", None, "by-hand")
    # the raw distribution is fond of "bad": calibration turned some answers
    turned = [p for p, s in asked if p.split == "train" and s.text == BAD and p.reference == GOOD]
    assert {row["prompt_id"] for row in selected if row["messages"][-1]["content"] == GOOD} & {p.id for p in turned}
    examples = list(read_examples(folder.selected))
    assert [e.choice_logprobs for e in examples] == [tuple(row["choice_logprobs"]) for row in selected]
    assert examples[0].messages[-1].role == "assistant" and examples[0].licence == "apache-2.0 (teacher), mit (prompts)"
    card = (run / "examples" / "README.md").read_text()
    assert f"a bias per choice (bad {bias[0]:+.3f}, good {bias[1]:+.3f})" in card and f"{temperature:.3f}" in card


def test_without_prior_references_and_checks_the_distribution_is_only_normalised(tmp_path: Path) -> None:
    task = {"kind": "choice", "choices": [BAD, GOOD]}
    source = {"source": str(tmp_path / "reviews.jsonl"), "licence": "mit", "columns": {"text": "text"}}
    plain, run = (
        recipe_in(tmp_path, task=task, prompts=source, verify=None, evaluate=None, student=None),
        tmp_path / "run",
    )
    folder = answer_by_hand(plain, run, lambda p: 0.2 + 0.6 * (len(p.text) % 2))
    assert Run(plain, run).verify().kept == 72
    assert json.loads(folder.calibration.read_text()) == {"bias": [0.0, 0.0], "temperature": 1.0}
    assert {round(math.exp(max(row["choice_logprobs"])), 9) for row in rows(run, "selected")} == {0.8}
    card = (run / "examples" / "README.md").read_text()
    assert "no choice has a bias" in card and "the temperature is 1" in card and "No checks." in card


def test_nothing_kept_is_one_sentence_and_the_verdicts_are_there(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, verify={"checks": [{"kind": "allowed_mass", "at_least": 0.95}], "processes": 1})
    answer_by_hand(recipe, tmp_path / "run", mass=0.9)
    with pytest.raises(InputError, match=r"none of 40 answers was accepted \(highest confidence 0\.\d+\)"):
        Run(recipe, tmp_path / "run").verify()
    reasons = {row["reason"] for row in rows(tmp_path / "run", "verdicts")}
    assert reasons == {"allowed_mass: little mass on the allowed answers"}


def test_a_persons_answer_that_is_no_choice_is_named(tmp_path: Path) -> None:
    odd = Prompt(id="p7", split="validation", messages=(), reference="meh")
    sample = Sample(prompt_id="p7", text=BAD, choice_logprobs=(-0.1, -3.0))
    with pytest.raises(InputError, match=r"'meh' of the prompt 'p7' is not one of task\.choices"):
        calibrate(recipe_in(tmp_path), [(odd, sample)])


def test_calibration_sees_no_label_of_a_test_prompt(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    with Requests(answer_by_hand(recipe, tmp_path / "run", knows).ledger) as requests:
        asked = list(requests.samples())
    assert any(prompt.split == "validation" and prompt.reference for prompt, _ in asked)
    test = [
        (
            Prompt(id=f"test{i}", split="test", messages=(), reference=label),
            Sample(prompt_id=f"test{i}", text=BAD, choice_logprobs=(-0.1, -3.0)),
        )
        for i, label in enumerate((BAD, GOOD) * 50)
    ]
    assert calibrate(recipe, [*asked, *test]) == calibrate(recipe, asked)


def canned(path: Path, texts: dict[str, list[str]]) -> dict[str, str]:
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, some in texts.items() for a in some))
    return {"kind": "canned", "answers": str(path)}


def test_what_is_not_sure_enough_is_rescued_by_another_teacher_without_its_calibration(tmp_path: Path) -> None:
    prompts = [f"say {i}" for i in range(6)]
    torn = {p: [GOOD, BAD] if i < 2 else [(BAD, GOOD)[i % 2]] for i, p in enumerate(prompts)}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in prompts))
    sure = {"model": "sure", "licence": "mit", "engine": canned(tmp_path / "sure.jsonl", {p: [GOOD] for p in prompts})}
    recipe = recipe_in(
        tmp_path,
        prompts={"source": str(tmp_path / "prompts.jsonl"), "licence": "mit", "columns": {"text": "text"}},
        teacher={"model": "torn", "licence": "mit", "engine": canned(tmp_path / "torn.jsonl", torn)},
        task={"kind": "choice", "choices": [BAD, GOOD], "prior": [0.3, 0.7]},
        generate={"n": 8},
        verify={"checks": [{"kind": "confidence", "at_least": 0.8}], "processes": 1},
        rescue={"tries": [{"samples": 8, "teacher": sure}]},
        evaluate=None,
        student=None,
    )
    run = tmp_path / "run"
    Run(recipe, run).generate()
    found = Run(recipe, run).rescue()
    by_id = {row["messages"][0]["content"]: row for row in rows(run, "selected")}
    rescued = {p for p, row in by_id.items() if row["rescue"] == 1}
    assert found.prompts["rescued"] == len(rescued) >= 1 and rescued <= {"say 0", "say 1"} | set(prompts)
    for prompt in rescued:  # 8 of 8 votes, half a vote added to each: neither bias nor temperature
        assert np.exp(by_id[prompt]["choice_logprobs"]).tolist() == pytest.approx([0.5 / 9, 8.5 / 9])
        assert by_id[prompt]["teacher"] == "sure"
    first = (run / "examples" / "selected.parquet").read_bytes()
    Run(recipe, run).verify()
    assert (run / "examples" / "selected.parquet").read_bytes() == first
    assert all(len({v["rescue"] for v in rows(run, "verdicts") if v["prompt_id"] == i}) <= 2 for i in by_id)
    assert sum(v["rescue"] == 0 for v in rows(run, "verdicts")) == 6  # eight votes are one answer


def test_the_same_teacher_asked_again_is_calibrated_alike(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, rescue={"tries": [{"samples": 1, "hint": "Think."}]})
    folder = answer_by_hand(recipe, tmp_path / "run", knows)
    with Requests(folder.ledger) as requests:
        asked = list(requests.samples())
    calibration = calibrate(recipe, asked)
    prompt, sample = asked[0]
    again = Sample(prompt_id=prompt.id, text="", index=1, choice_logprobs=sample.choice_logprobs, rescue=1)
    (_, own), (_, hinted) = calibrated(recipe, calibration, [(prompt, sample), (prompt, again)])
    assert own.calibrated_logprobs == hinted.calibrated_logprobs and own.text == hinted.text
    assert sum(map(math.exp, own.calibrated_logprobs or ())) == pytest.approx(1.0)
