"""More prompts out of a few: the teacher is shown some and writes others like them (after Self-Instruct, Wang et al.
2023), in a ledger of its own in `expansion/`: paid once. What is nearly a prompt that is there already is dropped.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from potstill.generate.ask import answered
from potstill.generate.rescue import prompts_in
from potstill.prompts.stream import stream_prompts
from potstill.recipe import GenerationRequest
from potstill.recipe.prompts import Columns, Expand
from potstill.records import Progress, Watch
from potstill.store.files import write_atomic
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.verify.words import runs, words

_COLUMNS = Columns(text="text", grade=None)
_ASK = (
    "Here are {shown} examples of a kind of task:\n\n{examples}\n\n"
    "Write {count} new tasks of the same kind, unlike these and unlike each other. "
    "One task a line, numbered, and nothing else."
)
_NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s*(.+?)\s*$")


def written_prompts(request: GenerationRequest, source: Expand, run: RunFolder, watch: Watch) -> GenerationRequest:
    """The request with the prompts that its teacher wrote in place of the seeds, and what is left of its budget."""
    seeds = [prompt.messages[-1].content for prompt in stream_prompts(source.seeds, Counter())]
    folder = run.path / "expansion"
    asks = folder.with_name("expansion.jsonl")
    writing = _writing(request, source).model_copy(update={"prompts": prompts_in(asks, source.licence, _COLUMNS)})
    enough = max(0, math.ceil((source.to - len(seeds)) / source.per_request))
    count, found, spent = 0, list(dict.fromkeys(seeds)), 0.0
    while len(found) < source.to and count < 5 * enough:
        count += max(1, math.ceil((source.to - len(found)) / source.per_request))
        texts = (
            ask_for_more(seeds, count=source.per_request, show=source.show, number=i, seed=request.seed)
            for i in range(count)
        )
        write_atomic(asks, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        spent = answered(writing, folder, watch).dollars
        distinct = Distinct(seeds, overlap=source.overlap)
        with Requests(folder / "ledger.sqlite") as requests:
            answers = [sample.text for _, sample in requests.samples()]
        found = [*seeds, *(text for answer in answers for text in listed(answer) if distinct.add(text))][: source.to]
    file = run.path / "prompts.jsonl"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found)
    if not file.is_file() or file.read_text(encoding="utf-8") != lines:
        write_atomic(file, lines)
    watch(Progress(stage="generate", what="prompts written", done=len(found), total=source.to))
    budget = request.generate.budget
    left = None if budget is None else max(1e-12, budget - spent)
    how = request.generate.model_copy(update={"budget": left})
    return request.model_copy(update={"prompts": prompts_in(file, source.licence, _COLUMNS), "generate": how})


def _writing(request: GenerationRequest, source: Expand) -> GenerationRequest:
    """Asks for prompts: one answer each, and without the teacher's instructions for the real ones."""
    plain = {"n": 1, "max_tokens": source.max_tokens, "truncated": "keep", "longest": None}
    return request.model_copy(
        update={
            "teacher": request.teacher.model_copy(update={"instructions": None, "examples": ()}),
            "generate": request.generate.model_copy(update=plain),
        }
    )


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
    found = words(text)
    return frozenset(map(tuple, runs(found, 3))) or frozenset([tuple(found)] if found else [])
