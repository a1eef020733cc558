"""A model that was trained is a model like any other: it may be trained again, by Potstill's loop or another."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from potstill.recipe.methods import Sft
from potstill.recipe.train import TrainSettings
from potstill.train.batch import Row
from potstill.train.data import Data
from potstill.train.language import TokenObjective
from potstill.train.loop import Training, fit


def test_afterwards_what_is_looked_up_has_its_gradient(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    settings = TrainSettings(method=Sft(kind="sft"), epochs=1, batch_size=2, validations=1)
    training = Training(
        data=Data([Row(prefix=(5, 6 + i), target=(9, 2)) for i in range(4)]),
        objective=TokenObjective(method=settings.method),
        settings=settings,
        seed=0,
        validate=lambda _: {},
    )
    fit(model, training)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    for one in (model, fresh):
        one.zero_grad()
        one(input_ids=torch.tensor([[5, 6, 9]]), labels=torch.tensor([[5, 6, 9]])).loss.backward()
    mine, wanted = (one.get_input_embeddings().weight.grad for one in (model, fresh))
    torch.testing.assert_close(mine, wanted)
