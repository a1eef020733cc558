"""The page of a task of kind text: numbers are those of the run, no win without its interval, parts may be missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders_run import SKILL, TRAINED, evaluate, made_run, recipe_in, train
from parsed import Page

from potstill.errors import InputError
from potstill.pipeline import Run
from potstill.records import Opinion, unwatched
from potstill.report.cases import Said
from potstill.report.gather import gather
from potstill.report.numbers import percent
from potstill.report.stage import write_report
from potstill.report.tally import Tally, histogram
from potstill.report.wording import beside_teacher
from potstill.report.wording import verdict as verdict_of
from potstill.store.run import RunFolder

ARMS = ["Teacher", "Student", "four", "Base", "From scratch", "SFT"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("orders")
    return made_run(folder, recipe_in(folder))


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return written(run)


def written(run: RunFolder) -> Page:
    return Page(write_report(run, watch=unwatched).read_text(encoding="utf-8"))


def scores_of(run: RunFolder) -> dict[str, Any]:
    return run.read_scores() or {}


def verdicts_of(run: RunFolder) -> list[dict[str, Any]]:
    return pq.read_table(run.verdicts).to_pylist()


def right_of(run: RunFolder, arm: str) -> set[str]:
    return {v["prompt_id"] for v in verdicts_of(RunFolder(run.test(arm))) if v["kept"]}


def test_the_road_is_counted_as_the_verdicts_say(run: RunFolder, page: Page) -> None:
    verdicts = verdicts_of(run)
    passed = sum(all(f["opinion"] == "passed" for f in v["findings"]) for v in verdicts)
    kept = sum(v["kept"] for v in verdicts)
    assert 0 < kept < passed < len(verdicts) == 120
    counted = {"asked for": 120, "answered": 120, "judged": 120, "passed every check": passed, "kept": kept}
    assert {name: page.row("road", name)[0] for name in counted} == {k: str(n) for k, n in counted.items()}
    reasons = Counter(v["reason"] for v in verdicts if not v["kept"])
    assert {why: page.row("road", why)[0] for why in reasons} == {why: str(n) for why, n in reasons.items()}
    shown = [int(row[1]) for row in page.rows["road"] if row[0].startswith(tuple(reasons))]
    assert shown == sorted(shown, reverse=True) and sum(shown) == len(verdicts) - kept
    opinions: Counter[tuple[str, Opinion]] = Counter(
        (f["check"].partition("@")[0], f["opinion"]) for v in verdicts for f in v["findings"]
    )
    table = {row[0].strip(): row[1:] for row in page.rows["road"][-2:]}
    assert table == {
        check: [str(opinions[check, o]) for o in ("passed", "failed", "undecided")] for check in ("json", "grounded")
    }


def test_prompts_by_how_many_of_their_answers_passed(run: RunFolder, page: Page) -> None:
    right: Counter[str] = Counter()
    for v in verdicts_of(run):
        right[v["prompt_id"]] += all(f["opinion"] == "passed" for f in v["findings"])
    for k in range(5):
        assert page.row("pass-rates", f"{k} of 4")[0] == str(sum(n == k for n in right.values()))


@given(st.lists(st.integers(0, 40), min_size=1), st.integers(1, 40))
def test_a_histogram_holds_every_prompt_once(passed: list[int], n: int) -> None:
    found = Tally()
    for k in passed:
        found.right[min(k, n), n] += 1
    bars = histogram(found, n).bars
    assert sum(prompts for *_, prompts in bars) == len(passed) and len(bars) <= 12
    assert [k for low, high, _ in bars for k in range(low, high + 1)] == list(range(n + 1))


def test_every_arm_is_there_with_its_scores(run: RunFolder, page: Page) -> None:
    scores = scores_of(run)
    assert [row[0].split(" ")[0] for row in page.rows["scores"][1:7]] == [name.split(" ")[0] for name in ARMS]
    for arm, label in zip(SKILL, ("Teacher", "Student", "four", "From scratch", "SFT", "Base"), strict=True):
        found = scores["arms"][arm]["accuracy"]
        low, high = found["ci95"]
        assert page.row("scores", label)[:2] == [percent(found["value"]), f"{100 * low:.1f} to {100 * high:.1f}"]
        assert len(right_of(run, arm)) == round(found["value"] * 40)
        assert page.row("mistakes", "right")[ARMS.index(label)] == str(len(right_of(run, arm)))
        for reason, n in scores["wrong"][arm].items():
            assert page.row("mistakes", reason)[ARMS.index(label)] == str(n)
    student, teacher = right_of(run, "student"), right_of(run, "teacher")
    assert page.row("differences", "Student right") == [str(len(student & teacher)), str(len(student - teacher))]
    gap = scores["gap_recovered"]["base"]
    assert gap is not None and any(
        row[0] == "Base" and row[1].startswith(percent(gap["value"])) for row in page.rows["differences"]
    )
    assert percent(scores["arms"]["student"]["accuracy"]["value"]) in page.sections["summary"]


def test_arms_are_described_by_what_they_change(page: Page) -> None:
    notes = page.said("scores")
    for said in (
        "student.layers: 4",
        "same shape, random weights, trained by the same method",
        "the same start, fine-tuned on the teacher's answers alone",
        "the student before its first step",
    ):
        assert said in notes
    made = page.row("training", "SFT")[0]
    assert "the first 15 of 30 layers of a/model-that-is-not-here" in made and "cross-entropy" in made
    assert "random weights in the shape of" in page.row("training", "From scratch")[0]
    assert "on the teacher's probabilities over every token" in page.row("training", "four")[0]
    kept = "stopped early after step 120; the weights of step 90 were kept, the best by validation nats_per_token: 0.31"
    assert kept in page.row("training", "four")[0] and "were kept" not in page.row("training", "Student")[0]
    assert page.drawn["training"] == 2  # loss and validation, of every arm
    curves = page.sections["training"]
    assert all(f"{name} 0." in curves for name in ("Student", "four", "From scratch", "SFT"))


def test_an_arm_without_scores_was_not_evaluated_yet(run: RunFolder) -> None:
    scores = scores_of(run)
    before = run.scores.read_text()
    try:
        del scores["arms"]["four"]
        run.scores.write_text(json.dumps(scores))
        assert "Not evaluated yet: four." in written(run).sections["scores"]
    finally:
        run.scores.write_text(before)


def test_candidates_stand_beside_each_other_mixed_ones_first(run: RunFolder) -> None:
    report = gather(run)
    assert len(report.candidates) == 12
    mixed = [bool(c.columns[0].answers) and bool(c.columns[1].answers) for c in report.candidates]
    assert mixed == sorted(mixed, reverse=True) and sum(mixed) >= 6
    verdicts = {
        v["prompt_id"]: [w for w in verdicts_of(run) if w["prompt_id"] == v["prompt_id"]] for v in verdicts_of(run)
    }
    known = Counter((len(rows), sum(row["kept"] for row in rows)) for rows in verdicts.values())
    for case in report.candidates:
        said: list[Said] = [one for column in case.columns for one in column.answers]
        assert sum(one.alike for one in said) + sum(c.more for c in case.columns) == 4
        assert known[4, sum(one.alike for one in said if one.fate == "kept")]
        for one in case.columns[1].answers:
            assert any(f.opinion == "failed" and f.reason in one.fate for f in one.findings)
    assert gather(run).candidates == report.candidates


def test_answers_of_all_arms_where_they_differ_first(run: RunFolder) -> None:
    shown = gather(run).side_by_side
    differ = [case.columns[0].answers[0].good != case.columns[1].answers[0].good for case in shown]
    assert any(differ) and differ == sorted(differ, reverse=True)
    for case in shown:
        assert [column.title for column in case.columns] == ARMS
        for column in case.columns:
            (one,) = column.answers
            assert one.good == (one.text == case.reference)  # the canned right answer is the reference itself


@pytest.mark.parametrize(
    ("low", "high", "beats"), [(0.01, 0.3, True), (0.0, 0.3, False), (-0.05, 0.3, False), (-0.3, -0.01, False)]
)
def test_a_win_needs_its_interval(run: RunFolder, low: float, high: float, beats: bool) -> None:
    scores, before = scores_of(run), run.scores.read_text()
    for found in scores["paired"].values():
        found["accuracy"] = {"value": (low + high) / 2, "ci95": [low, high]}
    try:
        run.scores.write_text(json.dumps(scores))
        page = written(run)
    finally:
        run.scores.write_text(before)
    assert ("beats" in " ".join(page.sections.values())) == beats
    assert ("too few to tell" in page.sections["summary"]) == (low <= 0 <= high)


@given(st.floats(-1, 1), st.floats(-1, 1), st.one_of(st.none(), st.floats(0, 9)))
def test_the_headline_claims_what_the_interval_allows(a: float, b: float, share: float | None) -> None:
    difference = {"value": (a + b) / 2, "ci95": [min(a, b), max(a, b)]}
    said = beside_teacher(difference, share=share)
    assert ("beats" in said) == (verdict_of(difference) == "better")


def test_a_page_shows_what_the_run_has_and_no_more(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, prompts=6, tests=6)
    run = made_run(tmp_path, recipe, student=False, tests=False)
    early = written(run)
    assert not {"scores", "differences", "answers", "mistakes", "training"} & set(early.sections)
    assert "were kept" in early.sections["summary"] and "right on" not in early.sections["summary"]
    train(run)
    trained = written(run)
    assert "it was not evaluated yet" in trained.sections["summary"]
    assert "It was not evaluated yet." in (run.model / "README.md").read_text(encoding="utf-8")
    evaluate(tmp_path, recipe, run)
    assert "right on" in written(run).sections["summary"]


def test_a_page_without_checks(tmp_path: Path) -> None:
    missing = dict.fromkeys(("verify", "select", "student", "train", "controls", "arms", "evaluate"))
    page = written(made_run(tmp_path, recipe_in(tmp_path, prompts=6, tests=6, **missing), student=False, tests=False))
    assert list(page.sections) == ["summary", "road", "time", "spent", "licences", "recipe", "versions"]
    assert "has written 24" in page.said("summary") and "judged" not in page.sections["road"]
    assert "attribution" in page.sections["licences"]  # cc-by-4.0 prompts


def test_prompts_not_asked_and_answers_not_judged_are_told(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, prompts=6, tests=6)
    made = Run(recipe, tmp_path / "run")
    made.generate(limit=2)
    made.verify()
    made.generate(limit=5)
    page = written(made.folder)
    assert page.row("road", "answered")[0] == "20" and page.row("road", "judged")[0] == "8"
    assert page.row("road", "not asked")[0] == "4" and page.row("road", "not judged yet")[0] == "12"


def test_scores_of_earlier_weights_are_said_so(run: RunFolder, page: Page) -> None:
    assert "earlier student" not in page.sections["summary"]
    trained = run.arm("four") / "trained.json"
    before = trained.read_text()
    try:
        trained.write_text(before.replace("four-1", "four-2"))
        assert "Trained again after this evaluation: four." in written(run).sections["summary"]
    finally:
        trained.write_text(before)


def test_every_trained_arm_has_a_card_with_the_duties(run: RunFolder, page: Page) -> None:
    assert "licences" in page.sections
    for arm in TRAINED:
        card = (run.arm_model(arm) / "README.md").read_text(encoding="utf-8")
        assert "prompts (cc-by-4.0): attribution" in card
        assert ("This is the arm" in card) == (arm != "student")
        assert "one of" not in card.partition("## How to use")[0]
    assert "`student.layers: 4`" in (run.arm_model("four") / "README.md").read_text(encoding="utf-8")


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        write_report(RunFolder(tmp_path), watch=unwatched)
