"""A real browser on the report: all sections show data, nothing is requested or complains."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import BINARY, Opened, open_page, screenshot
from sample import sample_data

from potstill.report.page import SECTIONS, render_page

if BINARY is None and not os.environ.get("CI"):
    pytest.skip("Chromium is not installed (apt-get install chromium)", allow_module_level=True)

FIGURES = {
    "accuracy": 1,
    "curves": 3,
    "calibration": 1,
    "verification": 1,
    "time": 1,
}
TABLES = ("licences", "arms", "differences", "gap", "disagreements", "both-wrong", "verification")


class Drawn(HTMLParser):
    """What each section holds once the scripts have run: figures, marks in them, table cells."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.section = ""
        self.figures: dict[str, int] = {}
        self.marks: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = (dict(attrs).get("class") or "").split()
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        elif tag == "div" and "svg-container" in names:
            self._count(self.figures)
        elif (tag == "path" and {"point", "js-line"} & set(names)) or "point" in names:
            self._count(self.marks)
        elif tag == "td":
            self._count(self.rows)

    def _count(self, counts: dict[str, int]) -> None:
        counts[self.section] = counts.get(self.section, 0) + 1


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(sample_data(hostile="</script><img src=x onerror=alert(1)>")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(report: Path) -> Opened:
    return open_page(report)


def test_every_section_shows_data(opened: Opened) -> None:
    drawn = Drawn(opened.dom)
    assert drawn.figures == FIGURES
    assert all(drawn.marks.get(section, 0) >= 5 for section in FIGURES), drawn.marks
    for section in TABLES:
        assert drawn.rows.get(section, 0) >= 4, section
    for section in SECTIONS:
        assert f'<section id="{section}"' in opened.dom
    assert opened.dom.count('class="main-svg"') >= sum(FIGURES.values())


def test_nothing_is_requested_and_nothing_complains(opened: Opened) -> None:
    assert opened.requests == []
    assert opened.console == []


def test_the_helper_sees_requests_and_complaints(tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text(
        '<img src="http://tracker.invalid/x.png"><script>console.error("loud")</script>',
        encoding="utf-8",
    )
    loud = open_page(page)
    assert loud.requests == ["http://tracker.invalid/x.png"]
    assert any("loud" in message for message in loud.console)


def test_the_helper_sees_a_broken_policy(tmp_path: Path) -> None:
    page = tmp_path / "blocked.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    page.write_text(f'{policy}<img src="http://tracker.invalid/x.png">', encoding="utf-8")
    blocked = open_page(page)
    assert blocked.requests == []
    assert any("Content Security Policy" in message for message in blocked.console)


@pytest.mark.parametrize("width", [1200, 390])
def test_a_picture_can_be_taken(report: Path, tmp_path: Path, width: int) -> None:
    png = tmp_path / "report.png"
    screenshot(report, png, width, 1400)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 20_000
