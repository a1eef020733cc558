"""Answers that a student writes while it learns, marked by the checks that chose what it learns from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from potstill.errors import InputError
from potstill.records import Message, Prompt, Sample, Score
from potstill.store.requests import Requests
from potstill.verify.workers import checked
from potstill.verify_recipe import Verification

Asked = Sequence[Message]


def marker(requests: Requests, verification: Verification) -> Callable[[Sequence[tuple[Asked, Sample]]], Score]:
    """Marks answers, each beside what was asked. Prompts, and what is known of them, are looked up in the ledger the
    first time; one without an answer there (it was rescued) is left out. What a check cannot say is not right."""
    prompts: dict[str, Prompt] = {}

    def mark(answers: Sequence[tuple[Asked, Sample]]) -> Score:
        if not prompts:
            wanted = {_key(asked) for asked, _ in answers}
            prompts.update((key, p) for p, _ in requests.samples(most=1) if (key := _key(p.messages)) in wanted)
        known = [(prompts[key], sample) for asked, sample in answers if (key := _key(asked)) in prompts]
        if not known:
            raise InputError(
                "none of the prompts held back for validation is in the run's ledger",
                way_out="set train.predict_with_generate to false",
            )
        taken = [(prompt, replace(sample, prompt_id=prompt.id)) for prompt, sample in known]
        found = checked(taken, verification.alone, processes=verification.processes)
        right = [all(finding.opinion == "passed" for finding in findings) for *_, findings in found]
        return Score(value=sum(right) / len(right), n=len(right))

    return mark


def _key(asked: Asked) -> str:
    return json.dumps([message.as_dict() for message in asked], sort_keys=True)
