"""One thing has one name: what docs/design/words.md retired is gone from code, documents and recipes."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORDS = ROOT / "docs" / "design" / "words.md"
NAMES_THE_OLD = {WORDS, ROOT / "docs" / "design" / "rooms.md"}

IDENTIFIERS = (
    "DataRecipe", "data_recipe", "StudentRecipe", "student_recipe", "TeacherRecipe", "teacher_recipe", "VerifyRecipe",
    "verify_recipe", "on_policy_recipe", "prompt_file", "data_plan", "Learner", "Lessons", "lessons", "Exam", "exam",
    "exams", "Paper", "Sitting", "Quiz", "harvest", "harvested", "Harvested", "sift", "sifted", "grading", "told_first",
    "untaught", "Trainee", "trainee", "LocalScorer", "uncached_reviews", r"student\.json", "controls/encoder",
    r"\w+_an?_(?:minute|second|token|prompt|request|file|answer|step)",
)  # fmt: skip
RATE = (
    r"(?:tokens|nats|bytes?|[KMG]B|requests|replies|bits?|dollars|words|rows?|columns?|lines?|objects?|values?|bias|"
    r"scales?|numbers?) an? (?:token|second|minute|hour|day|prompt|choice|step|answer|row|weight|channel|request|pass|"
    r"head|sample|file|run|training|layer|arm|text|question|metric|line|class|kept|draw|id|update|epoch|million)"
)
PHRASES = (
    r"mend(?:s|ed|ing)?", r"the teacher (?:said|says) no", r"leave some to learn", "sat", "sitting", r"pupils?",
    "taught", r"examin(?:e|es|ed|ing|ation|ations)", r"harvest(?:s|ing)?", r"sift(?:s|ing)?", "a lesson",
    "it was told", "what it is told", r"marks? (?:them|answers|the answers)", "the floor", "two kinds of recipes?",
    r"recipes? of free text", "data recipes?", RATE,
)  # fmt: skip
FORMS = (
    re.compile(rf"(?<!\w)(?:{'|'.join(IDENTIFIERS)})(?!\w)"),
    re.compile(rf"(?<![\w-])(?:{'|'.join(PHRASES)})(?!\w)", re.IGNORECASE),
    re.compile(r"""(["'`])floor\1"""),
)


def retired(line: str) -> list[str]:
    return [found.group(0) for form in FORMS for found in form.finditer(line)]


def lines_of(folder: str) -> Iterator[tuple[str, str]]:
    """(file:line, text); measured tables in docs/results keep the words that they were measured under."""
    where = ROOT / folder
    for path in [where] if where.is_file() else sorted(where.rglob("*")):
        if path.suffix not in (".py", ".md", ".yaml", ".jinja") or path in NAMES_THE_OLD:
            continue
        measured = path.parent.name == "results"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not (measured and line.startswith("|")):
                yield f"{path.relative_to(ROOT)}:{number}", line


@pytest.mark.parametrize("where", ["src", "docs", "recipes", "README.md"])
def test_no_retired_word_is_used(where: str) -> None:
    hits = [f"{place}: {', '.join(found)}" for place, line in lines_of(where) if (found := retired(line))]
    assert not hits, "\n" + "\n".join(hits)


@pytest.mark.parametrize(
    "line",
    [
        "class DataRecipe:", "requests_a_minute: 500", "0.3 nats a token", "30 tokens a second", "of the exam",
        "Mended since", 'controls: ["floor"]', "the pupils were taught", "what it was told", "the teacher said no",
    ],
)  # fmt: skip
def test_retired_words_are_found(line: str) -> None:
    assert retired(line)


@pytest.mark.parametrize(
    "line",
    ["math.floor(x)", "33 floor tiles", "nats per token", "amend", "for example", "of a token", "every arm answers"],
)
def test_other_words_are_not(line: str) -> None:
    assert not retired(line)


def test_every_word_has_one_line() -> None:
    rows = [line.strip("|").split("|") for line in WORDS.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 40 and all(len(row) == 3 and row[0].strip() and row[1].strip() for row in rows)
    named = Counter(word.strip(" `") for row in rows for word in row[0].split(","))
    assert [word for word, times in named.items() if times > 1] == []
