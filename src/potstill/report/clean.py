"""The cleaning of text that models and strangers wrote."""

from __future__ import annotations

import re
import unicodedata

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_JOINERS = frozenset("\u200c\u200d")  # Persian, Indic scripts and emoji are wrong without them


def clean(text: str) -> str:
    """`text` without terminal escapes, control, bidirectional and other invisible characters."""
    return "".join(_visible(c) for c in _ANSI.sub("", text.replace("\r\n", "\n")))


def clipped(text: str, longest: int) -> str:
    """`text` cleaned and cut to `longest` characters, with how many are missing."""
    if len(text) <= longest:
        return clean(text)
    return f"{clean(text[:longest])} […] ({len(text) - longest:,} more characters)"


def cut(text: str, longest: int = 700) -> str:
    """The beginning of `text`, cleaned."""
    cleaned = clean(text[: 2 * longest])
    return cleaned if len(cleaned) <= longest else f"{cleaned[:longest]} […]"


def code(text: str) -> str:
    """Text from outside as inline code of Markdown: it can open no link, tag or table cell."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', '/')}`"


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def titled(text: str, longest: int = 110) -> str:
    """The first words of `text`, on one line."""
    line = one_line(text[: 4 * longest])
    return line if len(line) <= longest else f"{line[:longest]}…"


def _visible(character: str) -> str:
    match unicodedata.category(character):
        case "Cc":
            return character if character in "\n\t" else ""
        case "Cf":
            return character if character in _JOINERS else ""
        case "Cs":
            return "\ufffd"
        case _:
            return character
