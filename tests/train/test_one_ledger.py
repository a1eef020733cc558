"""Answers are paid for once: three methods learn from one ledger, and the server hears nothing of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import torch
from data_runs import write_recipe

from loopback import loopback
from potstill.models.load import codec_of
from potstill.models.load import load as load_model
from potstill.models.locate import locate
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.methods import LogitKd, Method, Sft
from potstill.recipe.train import TrainSettings
from potstill.records import Example, Message
from potstill.store.requests import Requests
from potstill.text.tokens import choice_ids
from potstill.train.choices import choice_rows
from potstill.train.data import Data
from potstill.train.language import ChoiceObjective
from potstill.train.loop import Training, fit

CHOICES = ("good", "bad")
METHODS: tuple[Method, ...] = (
    Sft(kind="sft"),
    LogitKd(kind="logit_kd", temperature=1.0, alpha=1.0),
    LogitKd(kind="logit_kd", temperature=4.0, alpha=0.0),
)


def examples(ledger: Path) -> list[Example]:
    """A check of our own: an answer of an even number of words is "good"; the samples' shares are the soft label."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    asked: dict[str, tuple[Message, ...]] = {}
    with Requests(ledger) as requests:
        for prompt, sample in requests.samples():
            votes[prompt.id][CHOICES[len(sample.text.split()) % 2]] += 1
            asked[prompt.id] = prompt.messages
    return [
        Example(
            prompt_id=prompt_id,
            messages=(*asked[prompt_id], Message(role="assistant", content=count.most_common(1)[0][0])),
            choice_logprobs=tuple(math.log((count[choice] + 0.5) / (count.total() + 1)) for choice in CHOICES),
            teacher="loopback",
            licence="apache-2.0",
        )
        for prompt_id, count in votes.items()
    ]


def test_three_methods_from_one_ledger_send_no_new_request(tmp_path: Path, tiny_model: Path) -> None:
    with loopback() as server:
        recipe: Recipe = load_recipe(write_recipe(tmp_path, server.url, prompts=12, n=4, temperature=0.7))
        Run(recipe, tmp_path / "run").generate()
        paid = server.attempts()
        assert paid == 48
        weights: list[torch.Tensor] = []
        for method in METHODS:
            Run(recipe, tmp_path / "run").generate()  # every method's run begins with the teacher's stage
            found = examples(tmp_path / "run" / "ledger.sqlite")
            assert len(found) == 12
            teacher = load_model(locate(str(tiny_model)), dtype=torch.float32)
            codec = codec_of(teacher.folder, None, name="student")
            student = first_layers(teacher.model, 2)
            training = Training(
                data=Data(choice_rows(found, codec, CHOICES)),
                objective=ChoiceObjective(method=method, choices=choice_ids(codec, CHOICES)),
                settings=TrainSettings(method=method, epochs=2, batch_size=4, learning_rate=3e-3, validations=1),
                seed=0,
                validate=lambda _: {},
            )
            fitted = fit(student, training)
            assert fitted.steps == 6 and math.isfinite(fitted.seconds)
            weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
        assert server.attempts() == paid
