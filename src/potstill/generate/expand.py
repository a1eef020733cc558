"""More prompts out of a few: the teacher is shown some and writes others like them (after Self-Instruct, Wang et al.
2023). What is nearly a prompt that is there already is dropped.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

_ASK = (
    "Here are {shown} examples of a kind of task:\n\n{examples}\n\n"
    "Write {count} new tasks of the same kind, unlike these and unlike each other. "
    "One task a line, numbered, and nothing else."
)
_NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s*(.+?)\s*$")
_WORDS = re.compile(r"\w+")


def ask_for_more(seeds: Sequence[str], *, count: int, show: int, number: int, seed: int) -> str:
    """The `number`-th request for `count` new prompts; a pure function of its arguments."""
    shown = random.Random(f"{seed} {number}").sample(list(seeds), min(show, len(seeds)))
    examples = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(shown, 1))
    # The request's number makes each unlike the others, where few seeds would repeat a draw.
    return f"{_ASK.format(shown=len(shown), examples=examples, count=count)} (Request {number + 1}.)"


def listed(answer: str) -> Iterator[str]:
    """The tasks of a numbered list; a last line that was cut off in the middle is the caller's to drop."""
    for line in answer.splitlines():
        if found := _NUMBERED.match(line):
            yield found.group(1)


class Distinct:
    """Keeps texts of which no two share more than `overlap` of their word triples (Jaccard)."""

    def __init__(self, texts: Iterable[str], *, overlap: float) -> None:
        self._overlap = overlap
        self._triples: list[frozenset[tuple[str, ...]]] = []
        self._having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Whether the text is new enough; if so it is kept."""
        triples = _triples(text)
        shared: dict[int, int] = defaultdict(int)
        for triple in triples:
            for other in self._having[triple]:
                shared[other] += 1
        near = any(n / (len(triples) + len(self._triples[i]) - n) > self._overlap for i, n in shared.items())
        if near or not triples:
            return False
        for triple in triples:
            self._having[triple].append(len(self._triples))
        self._triples.append(triples)
        return True


def _triples(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORDS.findall(text.casefold())
    if len(words) < 3:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(words, words[1:], words[2:], strict=False))
