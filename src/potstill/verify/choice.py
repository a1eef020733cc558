"""Which of a multiple choice's letters an answer takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from potstill.verify.final import last_boxed

_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")

_THEN = r"(?:because|since|as|and|for|with|which|where|due|is|would)\b"  # after a letter; "A dog" is no letter


def chosen(text: str, letters: Sequence[str]) -> str | None:
    """The letter in the last box; else in the last "the answer is"; else the one that the text, its first or its last
    line is or begins with, where they do not contradict each other."""
    one = "|".join(map(re.escape, sorted(letters, key=len, reverse=True)))
    if (boxed := last_boxed(text)) is not None and (found := _leading(_TEXT.sub(r"\1", boxed), one)):
        return found
    said = re.findall(
        rf"\b(?i:answer|choice|option)\b(?i:\s+(?:is|would be|must be))?[\s:*_$=]{{0,20}}(?i:(?:option|choice)\s+)?"
        rf"(?:\\boxed\{{)?[*_(\[\s\"'“]{{0,9}}({one})(?![\w'’-])(?!(?<=[AI])\s+(?!{_THEN})[a-z])",
        text,
    )
    if said:
        return said[-1]
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    if len(lines) == 1:
        return _leading(lines[0], one)
    found = {letter for line in lines if (letter := _leading(line, one))}
    return found.pop() if len(found) == 1 and (_leading(lines[0], one) or _leading(lines[-1], one)) else None


def _leading(line: str, one: str) -> str | None:
    """The letter that a line is, or begins with as a mark: (B), B), B., B:, **B**, B - Paris."""
    plain = re.sub(r"[*_`$\"“”']", "", line).strip()
    alone = re.fullmatch(rf"[(\[]?({one})[)\]]?[.:]?", plain) or re.fullmatch(
        rf"[(\[]?({one})[)\]]?[.:]?", plain.upper()
    )
    found = alone or re.match(rf"[(\[]({one})[)\]]|({one})(?:[).:]|\s+[-–—])(?=\s|$)", plain)
    return next((group for group in found.groups() if group), None) if found else None
