"""A teacher in this process says its distribution over the choices, for every prompt of a request.

Batches are planned over all prompts, answered or not, so that a run resumed between two of them computes the same bits
as an unbroken one. A batch is stored when it is done, as attempts that cost nothing: what was computed is their reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from potstill.errors import InputError
from potstill.generate.collect import Asking, load_asks
from potstill.generate.context import context_of
from potstill.generate.waves import rendered
from potstill.models.locate import locate
from potstill.recipe import GenerationRequest
from potstill.recipe.request import probabilities_of
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Local
from potstill.records import Progress, Prompt, Watch
from potstill.store.requests import Intent, Outcome, Replied, Requests
from potstill.store.samples import Written
from potstill.text.tokens import Codec, Ids, choice_ids

if TYPE_CHECKING:
    from potstill.engines.local import ScoredBatch


def score_choices(request: GenerationRequest, requests: Requests, asking: Asking, watch: Watch) -> None:
    """Every prompt gets one answer with its `choice_logprobs`. What is there is not computed again."""
    from potstill.engines.local import ChoiceScorer, shared_prefix  # torch takes seconds
    from potstill.models.load import codec_of, folder_of, load

    task, teacher, engine = request.task, request.teacher, request.teacher.engine
    assert isinstance(task, Choice) and isinstance(engine, Local) and probabilities_of(request) == "computed here"
    located = locate(teacher.model)
    folder = folder_of(located, revision=teacher.revision)
    load_asks(request, requests)
    questions = list(requests.first_answers())
    asked = [prompt for _, prompt, _ in questions]
    total = min(asking.limit or len(asked), len(asked))
    skip = {*range(total, len(asked)), *(i for i, (_, _, answered) in enumerate(questions) if answered)}
    done = sum(answered for _, _, answered in questions)

    def tell(note: str = "") -> None:
        watch(Progress(stage="generate", what="teacher answers", done=min(done, total), total=total, note=note))

    tell()
    if len(skip) == len(asked):
        return
    codec = codec_of(folder, engine.template, name="teacher")
    opened = {number: prompt for i, (number, prompt, _) in enumerate(questions) if i not in skip}
    unreadable = _give_up_unreadable(requests, codec, opened)
    skip |= {i for i, (number, _, _) in enumerate(questions) if number in unreadable}
    if len(skip) == len(asked):
        return
    prompts, choices = prompt_ids(request, codec, asked), choice_ids(codec, task.choices)
    model = load(located, revision=teacher.revision).model
    reads = getattr(model.config, "max_position_embeddings", None)
    _check_fit(asked, prompts, choices, reads)
    shared = shared_prefix(prompts)
    scorer = ChoiceScorer(model, choices, prefix=shared)
    for batch in scorer.score(prompts, batch_tokens=engine.batch_tokens, skip=frozenset(skip)):
        tokens = [len(prompts[i]) - len(shared) for i in batch.positions]
        keep_batch(requests, [questions[i][0] for i in batch.positions], batch, tokens, task.choices)
        done += len(batch.positions)
        tell(f"{len(batch.positions) / batch.seconds:.1f} prompts/s")


def prompt_ids(request: GenerationRequest, codec: Codec, prompts: Sequence[Prompt]) -> list[Ids]:
    """In the teacher's tokens: instructions and worked examples first, so that all prompts share them."""
    before = context_of(request.teacher)
    return [codec.encode(rendered(codec.template, prompt, (*before, *prompt.messages))) for prompt in prompts]


def _give_up_unreadable(requests: Requests, codec: Codec, asked: Mapping[int, Prompt]) -> set[int]:
    """Which of them spell a control token, which the model would obey instead of reading it."""
    found: set[int] = set()
    with requests.transaction():
        for question, prompt in asked.items():
            if token := codec.control_token(prompt.messages, tools=prompt.tools):
                why = f"the prompt spells the control token {token}"
                requests.put_written([Written(question=question, sample=0, attempt=0, max_tokens=1, given_up=why)])
                requests.settle(question, "gave up")
                found.add(question)
    return found


def keep_batch(
    requests: Requests, questions: Sequence[int], batch: ScoredBatch, tokens: Sequence[int], choices: Sequence[str]
) -> None:
    """One finished batch, all or nothing: attempts that cost nothing, what was computed, and the answers. `questions`
    and `tokens` (how many were read) go with the batch's positions."""
    seconds = batch.seconds / len(questions)
    with requests.transaction():
        numbers = requests.send([Intent(question=q, sample=0, samples=1, max_tokens=1, worst=0) for q in questions])
        rows = list(zip(numbers, questions, batch.choice_logp, tokens, strict=True))
        requests.replied(
            Replied(attempt=number, raw=json.dumps({"choice_logprobs": logprobs}).encode(), seconds=seconds)
            for number, _, logprobs, _ in rows
        )
        requests.close([Outcome(attempt=number, state="read", prompt_tokens=read) for number, _, _, read in rows])
        requests.put_written(
            Written(
                question=question,
                sample=0,
                attempt=number,
                max_tokens=1,
                text=choices[max(range(len(choices)), key=logprobs.__getitem__)],
                choice_logprobs=logprobs,
                finish="stop",
            )
            for number, question, logprobs, _ in rows
        )
        for question in questions:
            requests.settle(question, "done")


def _check_fit(asked: Sequence[Prompt], prompts: Sequence[Ids], choices: Sequence[Ids], limit: int | None) -> None:
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    needed = len(prompts[longest]) + max(map(len, choices)) - 1
    if limit is not None and needed > limit:
        raise InputError(
            f"the prompt '{asked[longest].id}' has {needed} tokens with the teacher's examples and an "
            f"answer, but the teacher reads {limit}",
            way_out="shorten the prompt or the examples",
        )
