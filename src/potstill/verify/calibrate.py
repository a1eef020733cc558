"""Two corrections to the teacher's distribution over the allowed answers.

*Prior*: a language model prefers some label words whatever the question. One bias per choice makes its average answer
over unlabelled training prompts equal the prior of the recipe (Zhao et al. 2021, "Calibrate Before Use", with the
average prompt in place of a content-free one). *Temperature*: one number, fitted to a person's answers on the
validation prompts, makes its confidence honest (Guo et al. 2017). Neither sees the test prompts.

What other teachers answered in a rescue is normalised and no more: nobody asked them the training prompts.

Dimension key: N prompts, C choices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from potstill.errors import InputError
from potstill.recipe.task import Choice
from potstill.recipe.whole import Recipe
from potstill.records import Prompt, Sample
from potstill.store.files import write_atomic
from potstill.store.run import RunFolder, read_json
from potstill.verify.votes import Answers, choices_of, counted

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """ln p_calibrated = log_softmax((ln p + bias) / temperature)."""

    bias: tuple[float, ...]
    temperature: float

    def apply(self, logp_NC: Array) -> Array:
        return log_softmax((logp_NC + np.array(self.bias)) / self.temperature)


AS_SAID = Calibration(bias=(0.0,), temperature=1.0)
"""Normalised and no more."""


def calibrate(recipe: Recipe, samples: Answers) -> Calibration:
    """By the teacher's own `samples` of all prompts: the prior by those of the training prompts, without labels, the
    temperature by people's answers to validation prompts where there are any. Without a prior there is no bias."""
    assert isinstance(recipe.task, Choice)
    choices, prior = recipe.task.choices, recipe.task.prior
    train: list[tuple[float, ...]] = []
    graded: list[tuple[float, ...]] = []
    answers: list[int] = []
    for prompt, sample in counted(samples, choices):
        assert sample.choice_logprobs is not None
        if prompt.split == "train":
            train.append(sample.choice_logprobs)
        elif prompt.split == "validation" and prompt.reference is not None:
            graded.append(sample.choice_logprobs)
            answers.append(index_of(prompt.reference, choices, prompt))
    bias = (0.0,) * len(choices) if prior is None or not train else fit_bias(np.array(train), prior)
    if not graded:
        return Calibration(bias=bias, temperature=1.0)
    return Calibration(bias=bias, temperature=fit_temperature(np.array(graded) + np.array(bias), np.array(answers)))


def calibrated(recipe: Recipe, calibration: Calibration, answers: Answers) -> Iterator[tuple[Prompt, Sample]]:
    """One sample for a prompt's votes, each with its calibrated distribution, whose first choice is its text."""
    choices = choices_of(recipe)
    for prompt, sample in counted(answers, choices):
        own = recipe.asked(sample.rescue) == recipe.teacher
        logp_C = (calibration if own else AS_SAID).apply(np.array(sample.choice_logprobs))
        said = choices[int(logp_C.argmax())]
        yield prompt, replace(sample, text=said, calibrated_logprobs=tuple(logp_C.tolist()))


def write_calibration(run: RunFolder, calibration: Calibration) -> None:
    write_atomic(run.calibration, json.dumps(asdict(calibration), indent=1))


def read_calibration(run: RunFolder) -> Calibration:
    """Raises InputError where the answers were not verified yet."""
    if (stored := read_json(run.calibration)) is None:
        raise InputError(f"the teacher in '{run.path}' is not calibrated yet", way_out="potstill verify first")
    return Calibration(bias=tuple(stored["bias"]), temperature=stored["temperature"])


def index_of(answer: str, choices: Sequence[str], prompt: Prompt) -> int:
    """Raises InputError where a person's answer is none of the choices."""
    if answer not in choices:
        raise InputError(
            f"the reference '{answer}' of the prompt '{prompt.id}' is not one of task.choices {list(choices)}",
            way_out="fix the row or the recipe",
        )
    return choices.index(answer)


def log_softmax(logits_NC: Array) -> Array:
    shifted = logits_NC - logits_NC.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def fit_bias(logp_NC: Array, prior: Sequence[float]) -> tuple[float, ...]:
    """The bias under which the average probability of every choice equals `prior`, by fixed-point iteration."""
    wanted = np.log(np.array(prior))
    bias = np.zeros(len(prior))
    for _ in range(500):
        gap = wanted - np.log(np.exp(log_softmax(logp_NC + bias)).mean(axis=0))
        bias += gap
        if np.abs(gap).max() < 1e-10:
            break
    return tuple((bias - bias.mean()).tolist())


def fit_temperature(logp_NC: Array, answers_N: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] of least cross-entropy against people's answers, by golden-section search on its
    logarithm (the loss is convex in 1 / temperature, so it has one minimum)."""
    rows = np.arange(len(answers_N))

    def nats(log_t: float) -> float:
        return float(-log_softmax(logp_NC / np.exp(log_t))[rows, answers_N].mean())

    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if nats(left) < nats(right) else (left, high)
    return float(np.exp((low + high) / 2))
