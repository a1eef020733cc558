"""The report of a data recipe: numbers are those of the run, hostile text stays text, no win without its interval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import BINARY, open_page, screenshot
from hypothesis import given
from hypothesis import strategies as st
from orders_run import made_run, recipe_in

from potstill.cli import execute
from potstill.records import Opinion
from potstill.report.cases import Said
from potstill.report.free_text import write_data_report
from potstill.report.harvested import DataRun, gather_data_run
from potstill.report.tally import Tally, histogram
from potstill.report.wording import beside_teacher, percent, verdict

browser = pytest.mark.skipif(
    BINARY is None and not os.environ.get("CI"), reason="Chromium is not installed (apt-get install chromium)"
)
HOSTILE = (
    " </details></table></section><script>document.title='pwned'</script>"
    "<img src=http://evil.invalid/x onerror=alert(1)><svg onload=alert(2)></svg>{{ 7 * 7 }} \x1b[31mred\x1b[0m "
    "\u202egnp.exe\u202c \u2066\u200f\x00 שלום" + 25_000 * " long"
)


class Page(HTMLParser):
    """Visible text, by section; elements; table rows by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self._section, self._cell, self._silent = "", False, False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self._silent = tag in ("script", "style")
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section], self.rows[self._section] = "", []
        elif tag == "tr" and self._section:
            self.rows[self._section].append([])
        elif tag in ("td", "th") and self._section:
            self._cell = True
            self.rows[self._section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._silent or not self._section:
            return
        self.sections[self._section] += data
        if self._cell:
            self.rows[self._section][-1][-1] += data

    def row(self, section: str, first: str) -> list[str]:
        """The cells after the one that begins so."""
        return next(
            [c.strip() for c in row[1:]] for row in self.rows[section] if row and row[0].strip().startswith(first)
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orders")
    return made_run(folder, recipe_in(folder))


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return written(run)


def written(run: Path) -> Page:
    return Page(write_data_report(run).read_text(encoding="utf-8"))


def scores_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


def verdicts_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "examples" / "verdicts.parquet").to_pylist()


def test_the_road_is_counted_as_the_verdicts_say(run: Path, page: Page) -> None:
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


def test_prompts_by_how_many_of_their_answers_passed(run: Path, page: Page) -> None:
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


def test_the_exam_is_that_of_the_scores(run: Path, page: Page) -> None:
    scores = scores_of(run)
    for arm, found in scores["arms"].items():
        rate, (low, high) = found["pass_rate"]["value"], found["pass_rate"]["ci95"]
        assert page.row("exam", arm.capitalize())[:2] == [percent(rate), f"{100 * low:.1f} to {100 * high:.1f}"]
        right = sum(v["kept"] for v in verdicts_of(run / "exam" / arm))
        assert right == round(rate * 40)
        names = ["Teacher", "Student", "Base"]
        assert page.row("mistakes", "right")[names.index(arm.capitalize())] == str(right)
        for reason, n in found["wrong"].items():
            assert page.row("mistakes", reason)[names.index(arm.capitalize())] == str(n)
    student, teacher = (
        {v["prompt_id"] for v in verdicts_of(run / "exam" / a) if v["kept"]} for a in ("student", "teacher")
    )
    assert page.row("exam", "Student right") == [str(len(student & teacher)), str(len(student - teacher))]
    gap = scores["gap_recovered"]["base"]
    assert percent(gap["value"]) in page.row("exam", "Base")[0] or percent(gap["value"]) in page.sections["exam"]
    assert (
        "student" in page.sections["summary"]
        and percent(scores["arms"]["student"]["pass_rate"]["value"]) in page.sections["summary"]
    )


def test_candidates_stand_beside_each_other_mixed_ones_first(run: Path) -> None:
    data = gather_data_run(run)
    assert len(data.candidates) == 12
    mixed = [bool(c.columns[0].answers) and bool(c.columns[1].answers) for c in data.candidates]
    assert mixed == sorted(mixed, reverse=True) and sum(mixed) >= 6
    verdicts = {
        v["prompt_id"]: [w for w in verdicts_of(run) if w["prompt_id"] == v["prompt_id"]] for v in verdicts_of(run)
    }
    known = Counter((len(rows), sum(row["kept"] for row in rows)) for rows in verdicts.values())
    for case in data.candidates:
        said: list[Said] = [one for column in case.columns for one in column.answers]
        assert sum(one.alike for one in said) + sum(c.more for c in case.columns) == 4
        assert known[4, sum(one.alike for one in said if one.fate == "kept")]
        for one in case.columns[1].answers:
            assert any(f.opinion == "failed" and f.reason in one.fate for f in one.findings)
    assert gather_data_run(run).candidates == data.candidates


def test_answers_of_all_arms_where_they_differ_first(run: Path) -> None:
    papers = gather_data_run(run).papers
    differ = [case.columns[0].answers[0].good != case.columns[1].answers[0].good for case in papers]
    assert any(differ) and differ == sorted(differ, reverse=True)
    for case in papers:
        assert [column.title for column in case.columns] == ["Teacher", "Student", "Base"]
        for column in case.columns:
            (one,) = column.answers
            assert one.good == (one.text == case.reference)  # the canned right answer is the reference itself


def with_difference(run: Path, data: DataRun, low: float, high: float) -> Page:
    scores = scores_of(run)
    for found in scores["paired"].values():
        found["pass_rate"] = {"value": (low + high) / 2, "ci95": [low, high]}
    before = (run / "scores.json").read_text()
    try:
        (run / "scores.json").write_text(json.dumps(scores))
        return written(run)
    finally:
        (run / "scores.json").write_text(before)


@pytest.mark.parametrize(
    ("low", "high", "beats"), [(0.01, 0.3, True), (0.0, 0.3, False), (-0.05, 0.3, False), (-0.3, -0.01, False)]
)
def test_a_win_needs_its_interval(run: Path, low: float, high: float, beats: bool) -> None:
    text = " ".join(with_difference(run, gather_data_run(run), low, high).sections.values())
    assert ("beats" in text) == beats
    assert ("not distinguishable" in text) == (low <= 0 <= high)


@given(st.floats(-1, 1), st.floats(-1, 1), st.one_of(st.none(), st.floats(0, 9)))
def test_the_headline_claims_what_the_interval_allows(a: float, b: float, share: float | None) -> None:
    difference = {"value": (a + b) / 2, "ci95": [min(a, b), max(a, b)]}
    said = beside_teacher(difference, share=share, noun="pass rate")
    assert ("beats" in said) == (verdict(difference) == "better")


def test_hostile_text_stays_text(run: Path, tmp_path: Path) -> None:
    hostile = made_run(tmp_path, recipe_in(tmp_path, prompts=6, tests=6, hostile=HOSTILE))
    text = write_data_report(hostile).read_text(encoding="utf-8")
    assert len(text) < 400_000  # of megabytes of answers
    page = Page(text)
    assert page.elements["script"] == 1 and page.elements["img"] == 0 and "onerror" not in page.attributes
    assert page.elements["section"] == page.elements["h2"] + 1 == len(page.sections)
    for section in ("candidates", "answers"):
        assert (
            "<script>document.title='pwned'</script>" in page.sections[section]
            and "{{ 7 * 7 }}" in page.sections[section]
        )
        assert "more characters" in page.sections[section] and "שלום" in page.sections[section]
        assert not {"\x1b", "\u202e", "\u2066", "\u200f", "\x00"} & set(page.sections[section])


@browser
def test_a_browser_runs_and_requests_nothing_of_a_hostile_run(tmp_path: Path) -> None:
    hostile = made_run(tmp_path, recipe_in(tmp_path, prompts=6, tests=6, hostile=HOSTILE))
    opened = open_page(write_data_report(hostile))
    assert opened.requests == [] and opened.console == []
    assert "<title>orders: distillation report</title>" in opened.dom
    dom = Page(opened.dom)
    assert dom.elements["section"] == len(dom.sections) == 12 and dom.elements["img"] == 0
    assert dom.elements["svg"] == 2 and 'class="here"' in opened.dom  # curves are drawn; the page's own script ran


@browser
@pytest.mark.parametrize("width", [1200, 390])
def test_a_picture_of_the_data_page(run: Path, tmp_path: Path, width: int) -> None:
    screenshot(write_data_report(run), tmp_path / "page.png", width, 1400)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_a_page_shows_what_the_run_has_and_no_more(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, prompts=6, tests=6)
    run = made_run(tmp_path, recipe, student=False, exam=False)
    early = written(run)
    assert not {"exam", "answers", "mistakes", "training"} & set(early.sections)
    assert "were kept" in early.sections["summary"] and "right on" not in early.sections["summary"]
    made_run(tmp_path, recipe, exam=False)
    assert "sat no exam yet" in written(run).sections["summary"]


def test_a_page_without_checks(tmp_path: Path) -> None:
    bare = recipe_in(tmp_path, prompts=6, tests=6, verify=None, select=None, student=None, evaluate=None)
    page = written(made_run(tmp_path, bare, student=False, exam=False))
    assert list(page.sections) == ["summary", "road", "spent", "licences", "recipe", "versions"]
    assert "has written 24" in page.sections["summary"] and "judged" not in page.sections["road"]
    assert "attribution" in page.sections["licences"]  # cc-by-4.0 prompts


def test_prompts_not_asked_and_answers_not_judged_are_told(tmp_path: Path) -> None:
    from potstill.harvest import harvest, sift

    recipe = recipe_in(tmp_path, prompts=6, tests=6)
    run = tmp_path / "run"
    harvest(recipe, folder=run, limit=2)
    sift(recipe, folder=run)
    harvest(recipe, folder=run, limit=5)
    page = written(run)
    assert page.row("road", "answered")[0] == "20" and page.row("road", "judged")[0] == "8"
    assert page.row("road", "not asked")[0] == "4" and page.row("road", "not judged yet")[0] == "12"


def test_an_exam_of_an_earlier_student_is_said_so(run: Path, page: Page) -> None:
    assert "earlier student" not in page.sections["summary"]
    before = (run / "student.json").read_text()
    try:
        (run / "student.json").write_text(before.replace("f" * 64, "a" * 64))
        assert "an earlier student's" in written(run).sections["summary"]
    finally:
        (run / "student.json").write_text(before)


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink(missing_ok=True)
    assert execute(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out and (run / "report.html").is_file()
    assert execute(["report", str(run.parent / "orders.yaml"), "--run", str(tmp_path / "none")]) == 2
    assert "there is no run in" in capsys.readouterr().err


def test_the_data_page_needs_neither_torch_nor_plotly() -> None:
    code = (
        "import sys, potstill.report.free_text; "
        "print([m for m in ('torch', 'transformers', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
