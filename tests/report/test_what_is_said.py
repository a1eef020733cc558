"""What makes people believe more than is true is said where they look: funnel, kept prompts, own answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from orders_run import made_run, recipe_in
from parsed import Page

from potstill.console.outcomes import show_verified
from potstill.console.scores import show_scores
from potstill.report.gather import RunReport, gather
from potstill.report.page import render_page
from potstill.report.road import drops, stages
from potstill.report.tally import tally
from potstill.store.run import RunFolder
from potstill.store.verdicts import read_verdicts
from potstill.verify.select import KEPT
from potstill.verify.stage import Verified


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("orders")
    return made_run(folder, recipe_in(folder), student=False, tests=False)


@pytest.fixture(scope="module")
def report(run: RunFolder) -> RunReport:
    return gather(run)


def test_answers_beyond_the_recipes_own_are_a_rescues(run: RunFolder) -> None:
    indices = [ruling.index for ruling in read_verdicts(run.verdicts)]
    for own in (1, max(indices), max(indices) + 1):
        assert tally(run.verdicts, lenient=False, own=own).rescued == sum(index >= own for index in indices)


def test_a_funnel_that_grows_says_by_what(report: RunReport) -> None:
    assert report.tally is not None and "answered in a rescue" not in [what for what, _, _ in stages(report)]
    more = replace(report.tally, rescued=300, answers=report.tally.answers + 300)
    assert report.road is not None
    road = replace(report.road, to_judge=report.tally.answers + 5)
    rescued = replace(report, tally=more, road=road)
    assert ("answered in a rescue", 300, "") in stages(rescued)
    assert [n for what, n, _ in drops(rescued) if what == "not judged yet"] == [5]


@pytest.mark.parametrize(("share", "said"), [(0.4, True), (0.6, False)])
def test_few_kept_prompts_are_a_warning(
    report: RunReport, share: float, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.tally is not None
    kept = replace(report.tally, right=Counter({(1, 1): 100}), prompts_kept=round(100 * share))
    page = Page(render_page(replace(report, tally=kept)))
    assert ("learns from fewer than half of the prompts" in page.sections["road"]) == said
    prompts = Counter({"kept": round(100 * share), "lost": 100 - round(100 * share)})
    found = Verified(selected=tmp_path, reasons=Counter({KEPT: 1}), prompts=prompts)
    show_verified(found, rescue=False, as_json=False)
    assert ("fewer than half of the prompts" in " ".join(capsys.readouterr().out.split())) == said


@pytest.mark.parametrize(("share", "said"), [(0.0, True), (0.94, True), (0.95, False)])
def test_the_table_says_that_a_student_does_not_answer(
    share: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = {"value": 0.5, "n": 9, "ci95": [0.4, 0.6]}
    student = {"accuracy": accuracy, "exact_answers": {"value": share, "n": 9, "ci95": None}}
    arms = {"teacher": {"accuracy": accuracy}, "student": student}
    show_scores({"recipe": "r", "arms": arms, "paired": {}}, as_json=False)
    assert ("the student does not answer on its own" in " ".join(capsys.readouterr().out.split())) == said
