"""What to ask next: some answers per prompt, then more only where they are wanted.

A wave asks for as many answers as `wanted(prompt, answers so far)` says; when all of it is back, it says again. Answers
are numbered from 0; a number that is refused or fails for good is recorded as given up and not replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from potstill.dispatch.loop import Job, Taken
from potstill.engines.choose import prompt_template
from potstill.engines.reply import split_inline
from potstill.engines.sampler import Answer, Ask, Reading
from potstill.errors import InputError
from potstill.generate.context import context_of
from potstill.recipe import GenerationRequest
from potstill.recipe.generate import Generate
from potstill.recipe.request import probabilities_of
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Gguf, Http, Local, Server, Teacher
from potstill.records import Message, Prompt, Sample
from potstill.store.asks import Open, Settled
from potstill.store.requests import Requests
from potstill.store.samples import FILTERED, IN_VAIN, Written
from potstill.text.template import Template

Wanted = Callable[[Prompt, Sequence[Sample]], int]
"""How many more answers this prompt should get, given the good ones it has."""

EMPTY = "an empty answer"
EMPTY_FOR_NOW = f"{IN_VAIN}{EMPTY}"
_LOOKED_AT_ONCE = 2000  # prompts looked through in one turn where nothing is to be asked


def fixed(n: int) -> Wanted:
    return lambda _, samples: n - len(samples)


def seed_key(request: GenerationRequest, prompt: Prompt) -> bytes:
    """What was asked of whom, by name. Not in it: max_tokens (a finished answer fits any), n, where the server stands,
    money; nor the weights of a model in this process, which the ledger's key has and no seed depends on."""
    writer, how = request.teacher, request.generate
    engine = writer.engine
    turns = [m.as_dict() for m in (*context_of(writer), *prompt.messages)]
    choices = _choices_asked(request)
    asked = (
        {"server": "http", "batches": "http"}.get(engine.kind, engine.kind),
        engine.form if isinstance(engine, Server) else "openai",
        engine.template if isinstance(engine, Local | Server | Gguf) else None,
        (writer.model, writer.revision),
        choices or (how.temperature, how.top_p, how.parameters, request.seed),
        turns,
        *([prompt.tools] if prompt.tools else []),
    )
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()[:16]


def _choices_asked(request: GenerationRequest) -> tuple[object, ...] | None:
    """Where the distribution itself is asked for: in which way, of which choices. Nothing of it is drawn."""
    way, task, engine = probabilities_of(request), request.task, request.teacher.engine
    if way is None or way == "votes" or not isinstance(task, Choice):
        return None
    tokens = engine.tokenizer if isinstance(engine, Server) and way == "prompt_logprobs" else None
    return (way, task.choices, tokens, request.generate.parameters)


class Turns:
    """What the teacher is sent for a prompt: after its instructions and examples, in messages or as text."""

    def __init__(self, request: GenerationRequest, template: Template | None) -> None:
        self._before, self._template = context_of(request.teacher), template
        scored = probabilities_of(request) == "prompt_logprobs"
        self._continuations = request.task.choices if scored and isinstance(request.task, Choice) else ()

    def ask(self, prompt: Prompt, *, count: int, max_tokens: int, seed: int, identity: str) -> Ask:
        messages = (*self._before, *prompt.messages)
        return Ask(
            messages=tuple(m.as_dict() for m in messages),
            tools=prompt.tools,
            count=count,
            max_tokens=max_tokens,
            seed=seed,
            identity=identity,
            prompt=self._template and rendered(self._template, prompt, messages),
            continuations=self._continuations,
        )


def rendered(template: Template, prompt: Prompt, messages: Sequence[Message]) -> str:
    """What the teacher reads. Raises InputError where its template would drop a part of it."""
    if (prompt.tools or any(m.tool_calls for m in messages)) and (what := template.dropped(messages, prompt.tools)):
        raise InputError(
            f"the teacher's template does not write {what}, which the prompt '{prompt.id}' has",
            way_out="write them in 'teacher.engine.template', or leave those prompts out",
        )
    return template.render(messages, tools=prompt.tools, add_generation_prompt=True)


@dataclass(slots=True)
class _Asked:
    """A question in work: its answers by number, the numbers that are on their way, and those that this run has given
    up (`failed`: some of them for now only)."""

    open: Open
    written: dict[int, Written]
    away: set[int] = field(default_factory=set[int])
    given_up: set[int] = field(default_factory=set[int])
    failed: bool = False


class Waves:
    """The `Work` of a dispatcher over the open prompts of a ledger. At most `most` answers per prompt are asked for."""

    def __init__(
        self, request: GenerationRequest, requests: Requests, *, wanted: Wanted, most: int, limit: int | None = None
    ) -> None:
        engine = request.teacher.engine
        self._how, self._requests, self._wanted, self._most = request.generate, requests, wanted, most
        self._teacher = request.teacher
        self._together = engine.samples_per_request if isinstance(engine, Server) else 1
        self._turns = Turns(request, prompt_template(request))
        self._source: Iterator[Open] = requests.open_asks(limit=limit)
        self._asked: dict[int, _Asked] = {}
        self._ready: deque[Job] = deque()
        self._dry = False
        self.settled = 0
        """Prompts settled by this run."""

    @property
    def exhausted(self) -> bool:
        return self._dry and not self._ready

    def next(self) -> Job | None:
        for _ in range(_LOOKED_AT_ONCE):
            if self._ready:
                return self._ready.popleft()
            found = next(self._source, None)
            if found is None:
                self._dry = True
                return None
            asked = _Asked(found, {w.sample: w for w in found.written})
            self._asked[found.question] = asked
            self._ready.extend(self._wave(asked))
        return None

    def answered(self, job: Job, attempt: int, reading: Reading) -> Taken:
        asked = self._asked[job.question]
        rows = [
            written(
                job.question,
                job.sample + i,
                answer,
                attempt=attempt,
                max_tokens=job.ask.max_tokens,
                teacher=self._teacher,
            )
            for i, answer in enumerate(reading.answers[: job.ask.count])
        ]
        self._requests.put_written(rows)
        asked.written |= {row.sample: row for row in rows}
        missing = range(job.sample + len(rows), job.sample + job.ask.count)
        longer = [row for row in rows if self._longer(row)]
        asked.away -= {row.sample for row in rows if row not in longer}
        empty = {row.sample for row in rows if row.given_up == EMPTY_FOR_NOW and row not in longer}
        asked.given_up |= empty
        asked.failed = asked.failed or bool(empty)
        then = [self._job(asked, row.sample, 1, min(2 * row.max_tokens, self._longest)) for row in longer]
        then += [self._job(asked, sample, 1, job.ask.max_tokens) for sample in missing]
        wasted = sum(not usable(row, self._how) for row in rows)
        return Taken((*then, *self._next_wave(asked)), wasted)

    def gave_up(self, job: Job, attempt: int, why: str, *, final: bool) -> tuple[Job, ...]:
        asked = self._asked[job.question]
        numbers = range(job.sample, job.sample + job.ask.count)
        rows = [
            Written(
                question=job.question,
                sample=number,
                attempt=attempt,
                max_tokens=job.ask.max_tokens,
                given_up=why if final else f"{IN_VAIN}{why}",
            )
            for number in numbers
            if number not in asked.written or asked.written[number].given_up
        ]
        self._requests.put_written(rows)
        asked.written |= {row.sample: row for row in rows}
        asked.given_up |= set(numbers)
        asked.failed = asked.failed or not final
        asked.away -= set(numbers)
        return tuple(self._next_wave(asked))

    # one prompt

    def _next_wave(self, asked: _Asked) -> list[Job]:
        return [] if asked.away else self._wave(asked)

    def _wave(self, asked: _Asked) -> list[Job]:
        """The requests of the next wave, none where the prompt is settled. Two neighbours may share a request."""
        good = [w for w in asked.written.values() if usable(w, self._how) and not self._owed(asked, w.sample)]
        more = max(self._wanted(p, [_sample(p.id, w) for w in good]) for p in asked.open.prompts)
        free = [number for number in range(self._most) if number not in asked.given_up and self._owed(asked, number)]
        numbers = free[: max(0, more)]
        if not numbers:
            self._settle(asked, "done" if more <= 0 else "failed" if asked.failed else "gave up")
            return []
        asked.away |= set(numbers)
        jobs: list[Job] = []
        for first, count in _runs(numbers, self._together):
            before = asked.written.get(first)
            cut = before.max_tokens if before and before.cut_off and self._how.truncated == "longer" else 0
            jobs.append(self._job(asked, first, count, max(self._how.max_tokens, min(2 * cut, self._longest))))
        return jobs

    def _owed(self, asked: _Asked, number: int) -> bool:
        """Whether this answer is still to be had: never asked, failed in an earlier run, or cut off too early."""
        row = asked.written.get(number)
        if row is None:
            return True
        if row.given_up:
            return row.given_up.startswith(IN_VAIN)
        return row.cut_off and (row.max_tokens < self._how.max_tokens or self._longer(row))

    @property
    def _longest(self) -> int:
        return self._how.longest or self._how.max_tokens

    def _longer(self, row: Written) -> bool:
        return self._how.truncated == "longer" and row.cut_off and row.max_tokens < self._longest

    def _settle(self, asked: _Asked, how: Settled) -> None:
        self._requests.settle(asked.open.question, how)
        self._asked.pop(asked.open.question, None)
        self.settled += len(asked.open.prompts)

    def _job(self, asked: _Asked, sample: int, count: int, max_tokens: int) -> Job:
        ask = self._turns.ask(
            asked.open.prompts[0],
            count=count,
            max_tokens=max_tokens,
            seed=int.from_bytes(hashlib.sha256(asked.open.seed_key + sample.to_bytes(4)).digest()[:4]) >> 1,
            identity=f"{asked.open.key.hex()}-{sample}-{max_tokens}",
        )
        return Job(question=asked.open.question, sample=sample, ask=ask)


def written(
    question: int, sample: int, answer: Answer | Sample, *, attempt: int, max_tokens: int, teacher: Teacher
) -> Written:
    """The ledger's row of an answer, new or from another ledger. One that the provider filtered, or that says nothing,
    is given up, and kept for the record; the next run asks a server for it again, a model in this process would write
    the same."""
    if teacher.reasoning_tags and answer.reasoning is None:
        reasoning, text, closed = split_inline(answer.text, {teacher.reasoning_tags[0]: teacher.reasoning_tags[1]})
        answer = replace(answer, text=text, reasoning=reasoning, cut_off=answer.cut_off or not closed)
    given_up = FILTERED if answer.finish == "filtered" else None
    if not answer.text.strip() and not answer.tool_calls and answer.choice_logprobs is None:
        given_up = given_up or (EMPTY_FOR_NOW if isinstance(teacher.engine, Http) else EMPTY)
    return Written(
        question=question,
        sample=sample,
        attempt=attempt,
        max_tokens=max_tokens,
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        choice_logprobs=answer.choice_logprobs,
        finish=answer.finish,
        cut_off=answer.cut_off,
        given_up=given_up,
    )


def usable(row: Written, how: Generate) -> bool:
    """Whether a stored answer is one, under the recipe's word on those that were cut off."""
    return row.given_up is None and not (row.cut_off and how.truncated != "keep")


def _runs(numbers: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Neighbouring numbers as (first, count), at most `longest` together."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or end - start == longest or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end


def _sample(prompt_id: str, row: Written) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        text=row.text or "",
        index=row.sample,
        reasoning=row.reasoning,
        tool_calls=row.tool_calls,
        choice_logprobs=row.choice_logprobs,
        finish=row.finish,
        cut_off=row.cut_off,
    )
