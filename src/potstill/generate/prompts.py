"""Prompts that the teacher writes after a few of yours, in a ledger of their own in `expansion/`: paid once."""

from __future__ import annotations

import json
import math
from collections import Counter

from potstill.generate.ask import answered
from potstill.generate.expand import Distinct, ask_for_more, listed
from potstill.generate.rescue import prompts_in
from potstill.prompts.stream import stream_prompts
from potstill.recipe import GenerationRequest
from potstill.recipe.prompts import Columns, Expand
from potstill.records import Progress, Watch
from potstill.store.files import write_atomic
from potstill.store.requests import Requests
from potstill.store.run import RunFolder

_COLUMNS = Columns(text="text", grade=None)


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
