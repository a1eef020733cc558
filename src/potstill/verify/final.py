"""Where in an answer its result stands: in the last box, after "the answer is", in the last formula, or all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BETWEEN_BOXES = re.compile(r"[\s$.,;]*(?:\\text\s*\{\s*)?(?:and|or|,)?(?:\s*\})?[\s$]*")
_ANCHOR = re.compile(
    r"####|\b(?:final\s+|correct\s+)?answer\b[*_]*(?:\s+(?:is|equals)\b|\s*[:=])?[*_]*\s*(?:\bis\b)?[:\s*_]*",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(?P<a>.+?)\$\$|(?<!\\)\$(?P<b>(?:[^$\n\\]|\\.)+?)(?<!\\)\$|\\\[(?P<c>.+?)\\\]|\\\((?P<d>.+?)\\\)", re.DOTALL
)
_NUMBER = r"[-−+]?\(?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_RUN = re.compile(rf"(?<![\w.,^\\(])(?:[-−]\s*)?{_NUMBER}\)?(?:\s*[-+*/^×÷]\s*{_NUMBER}\)?)*(?:\s*\\?%)?(?![\w^]|\.\d)")
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")


@dataclass(frozen=True, slots=True)
class Result:
    """What an answer says its result is. `stated`: it stands alone, so that it must be read whole; else it is the last
    number of some prose."""

    text: str
    stated: bool = True


def result_of(text: str) -> Result | None:
    """None: a box that is not closed, or nothing that could be a result."""
    if _BOX.search(text):
        boxed = last_boxed(text)
        return None if boxed is None else Result(boxed)
    anchors = list(_ANCHOR.finditer(text))
    if anchors and (said := _after(text[anchors[-1].end() :])):
        return said
    if formulas := list(_FORMULA.finditer(text)):
        last = formulas[-1]
        start = next((i for i in range(len(formulas) - 1, 0, -1) if not _joined(text, formulas[i - 1 : i + 1])), 0)
        return Result(text[formulas[start].start() : last.end()])
    return _prose(text)


def reference_of(text: str) -> str:
    """The result of a reference, which may be a worked answer as MATH and GSM8K hold them; else all of it."""
    if _BOX.search(text):
        return last_boxed(text) or text
    return text.rsplit("####", 1)[-1].strip()


def last_boxed(text: str) -> str | None:
    """What is in the last box; in the last few, where only "and" or a comma stands between them. None where the last is
    not closed."""
    boxes: list[tuple[int, int, int]] = []
    end = 0
    for found in _BOX.finditer(text):
        if found.start() < end:
            continue  # in another
        closed = closing(text, found.end())
        if closed is None:
            return None
        boxes.append((found.start(), found.end() + 1, closed))
        end = closed
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _BETWEEN_BOXES.fullmatch(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    found = list(dict.fromkeys(text[start:stop].strip() for _, start, stop in boxes[first:]))
    return last_boxed(found[0]) if len(found) == 1 and _BOX.search(found[0]) else ", ".join(found)


def closing(text: str, at: int) -> int | None:
    """The place of the brace that closes the one at `at`."""
    depth = 0
    for found in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if depth == 0:
            return found.start()
    return None


def _after(text: str) -> Result | None:
    """What "the answer is" is followed by: a formula, the words up to the end of the sentence, or a number in them."""
    formulas = list(_FORMULA.finditer(text))
    if formulas and not re.search(r"\w", text[: formulas[0].start()]):
        stop = next((i for i in range(1, len(formulas)) if not _joined(text, formulas[i - 1 : i + 1])), len(formulas))
        return Result(text[: formulas[stop - 1].end()] + _unit_after(text[formulas[stop - 1].end() :]))
    said = _SENTENCE_END.split(text.strip(), maxsplit=1)[0].strip(" *_")
    if not said:
        return None
    return Result(said) if len(said.split()) <= 4 or not _RUN.search(said) else _prose(said, first=True)


def _without_words(text: str) -> bool:
    """Whether nothing in it is longer than a name of mathematics."""
    return re.search(r"[^\W\d_]{2}", re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[a-zA-Z]+", "", text)) is None


def _unit_after(text: str) -> str:
    found = re.match(r"\s*(?:\\?%|percent)", text)
    return found.group() if found else ""


def _joined(text: str, pair: list[re.Match[str]]) -> bool:
    return re.fullmatch(r"\s*(?:,|,?\s*(?:and|or))\s*", text[pair[0].end() : pair[1].start()]) is not None


def _prose(text: str, *, first: bool = False) -> Result | None:
    """A short text is its own result; of a longer one the last number may be, unless it is one of several."""
    said = text.strip()
    if _without_words(said) or len(said.split()) <= 2:
        return Result(said) if said else None
    runs = list(_RUN.finditer(said))
    if not runs:
        return None
    found = runs[0 if first else -1]
    if re.search(r"\d\s*(?:,|,?\s*\b(?:and|or|to))\s*$", said[: found.start()]):
        return None
    return Result(found.group(), stated=False)
