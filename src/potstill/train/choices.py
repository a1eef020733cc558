"""A causal language model that learns to choose: the teacher's distribution over the allowed answers, and to write one
and stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from potstill.errors import InputError
from potstill.recipe import Arm
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.student import Student
from potstill.recipe.task import Choice
from potstill.records import Example
from potstill.text.tokens import Codec, choice_ids
from potstill.train.batch import Row
from potstill.train.data import Data
from potstill.train.handed import Handed, Outcome
from potstill.train.initial import adapted, initial_student, save
from potstill.train.language import ChoiceObjective
from potstill.train.loop import Training, fit
from potstill.train.room import fitting
from potstill.train.rows import require_some
from potstill.train.traces import ArmFiles
from potstill.train.validation import held_out
from potstill.train.world import World

_LEAST_P = 1e-12


def train_on_choices(
    arm: Arm,
    examples: Sequence[Example],
    files: ArmFiles,
    handed: Handed,
    layers: Sequence[int] | None,
    world: World,
) -> Outcome:
    """Train from wherever it stands and save the model folder; its checkpoints are then dropped."""
    recipe, student, task = arm.recipe, arm.student, arm.recipe.task
    assert isinstance(student, Student) and isinstance(task, Choice)
    assert isinstance(recipe.train.method, Sft | LogitKd)
    sample = [example.messages for example in examples]
    start = initial_student(student, sample, seed=recipe.seed, layers=layers, loads_on=world.loads_on)
    codec, adapters = start.codec, adapted(start, files, seed=recipe.seed)
    learned, held = held_out(recipe, examples)
    left_out = Counter[str]()
    longest = max(len(codec.answer(choice)) for choice in task.choices)
    rows = fitting(choice_rows(learned, codec, task.choices, left_out), start.model, left_out, own=longest)
    files.tell_left_out(left_out, learnt=len(rows))
    traces = files.traces(recipe.train, writes=world.first)
    training = Training(
        data=Data(rows),
        objective=ChoiceObjective(
            method=recipe.train.method, choices=choice_ids(codec, task.choices), spell=codec.text
        ),
        settings=recipe.train,
        seed=recipe.seed,
        validate=handed.validator(arm, held),
        traces=traces,
        world=world,
    )
    with traces.metrics:
        fitted = fit(start.model, training)
    if world.first:
        save(start, longest=longest, to=files.model, adapters=adapters)
        traces.checkpoints.clear()
    return Outcome(examples=len(rows), fitted=fitted, layers=start.layers, of=start.of, left_out=dict(left_out))


def choice_rows(
    examples: Sequence[Example], codec: Codec, choices: Sequence[str], left_out: Counter[str] | None = None
) -> list[Row]:
    """The student's own template: what only the teacher reads (instructions, worked examples) is not in it. A prompt
    that it does not write, or that spells a control token, is left out and counted. Raises InputError where none is
    left."""
    targets = {choice: codec.answer(choice, closed=True) for choice in choices}
    left_out = Counter() if left_out is None else left_out
    rows: list[Row] = []
    for example in examples:
        *asked, answer = example.messages
        assert example.choice_logprobs is not None
        try:
            prefix = codec.question(asked)
        except InputError as why:
            left_out[why.problem] += 1
            continue
        p_C = np.maximum(np.exp(np.array(example.choice_logprobs)), _LEAST_P)
        row = Row(
            prefix=prefix,
            target=targets[answer.content],
            teacher_logp=tuple(np.log(p_C).tolist()),
            weight=example.weight,
            prompt_id=example.prompt_id,
        )
        rows.append(row)
    require_some(rows, left_out)
    return rows
