"""An HTML page as tests look at it: its elements, its visible text and the rows of its tables, by section."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.drawn: Counter[str] = Counter()
        self.style = ""
        self._section, self._cell, self._silent = "", False, False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style", "title")
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section], self.rows[self._section] = "", []
        elif tag == "tr" and self._section:
            self.rows[self._section].append([])
        elif tag in ("td", "th") and self._section:
            self._cell = True
            self.rows[self._section][-1].append("")
        elif tag == "svg":
            self.drawn[self._section] += 1

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._silent:
            self.style += data
        elif self._section:
            self.sections[self._section] += data
            if self._cell:
                self.rows[self._section][-1][-1] += data

    def said(self, section: str) -> str:
        """Its text with single blanks."""
        return " ".join(self.sections[section].replace("\u00a0", " ").split())

    def row(self, section: str, first: str) -> list[str]:
        """The cells after the one that begins so."""
        return next(
            [c.strip() for c in row[1:]] for row in self.rows[section] if row and row[0].strip().startswith(first)
        )
