"""What learning curves of students that choose show, on validation prompts or on examples that are held back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from choices_by_hand import BAD, GOOD, answer_by_hand, recipe_in
from transformers import AutoModelForCausalLM

from potstill.evaluate.validation import Validation, validator
from potstill.models.encoder import initial_encoder
from potstill.models.load import codec_of
from potstill.pipeline import Run
from potstill.recipe.student import Encoder
from potstill.store.examples import read_examples
from potstill.text.tokens import choice_ids
from potstill.verify.calibrate import log_softmax


def test_a_language_model_is_scored_on_the_validation_split(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(tmp_path, student={"start": str(tiny_model), "licence": "mit"})
    run = answer_by_hand(recipe, tmp_path / "run")
    Run(recipe, run.path).verify()
    given = Validation.of_run(recipe, run)
    assert {p.split for p in given.prompts} == {"validation"} and given.teacher_NC.shape == (12, 2)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    scores = validator(recipe, given)(model)
    codec = codec_of(tiny_model, None, name="student")
    choices = choice_ids(codec, (BAD, GOOD))

    def sequence_logp(prefix: tuple[int, ...], choice: tuple[int, ...]) -> float:
        with torch.inference_mode():
            logp = torch.log_softmax(model(torch.tensor([[*prefix, *choice]])).logits[0].double(), -1)
        return sum(logp[len(prefix) - 1 + step, token].item() for step, token in enumerate(choice))

    right, same, divergence = [], [], []
    for prompt, teacher in zip(given.prompts, given.teacher_NC, strict=True):
        logp = log_softmax(np.array([sequence_logp(codec.prefix(prompt.messages), choice) for choice in choices]))
        right.append((BAD, GOOD)[logp.argmax()] == prompt.reference)
        same.append(logp.argmax() == teacher.argmax())
        divergence.append((np.exp(teacher) * (teacher - logp)).sum())
    assert scores["accuracy"].value == np.mean(right) and scores["agreement"].value == np.mean(same)
    assert scores["kl_to_teacher"].value == pytest.approx(np.mean(divergence), rel=1e-4)
    assert {score.n for score in scores.values()} == {12}


def test_an_encoder_is_scored_on_examples_that_are_held_back(tmp_path: Path, tiny_model: Path) -> None:
    student = {"kind": "encoder", "shape": {"layers": 1, "hidden": 16, "heads": 2}, "tokenizer": str(tiny_model)}
    recipe = recipe_in(tmp_path, student=student, controls=["base"])
    run = answer_by_hand(recipe, tmp_path / "run")
    Run(recipe, run.path).verify()
    held = list(read_examples(run.selected))[:7]
    assert isinstance(recipe.student, Encoder)
    classifier = initial_encoder(recipe.student, (BAD, GOOD), seed=0)
    scores = validator(recipe, Validation.of_examples(held))(classifier.model)
    assert set(scores) == {"agreement", "kl_to_teacher"}  # nobody knows what is right there
    logits = classifier.model(**classifier.encode([e.messages[0].content for e in held])).logits
    logp = torch.log_softmax(logits.double(), -1).detach().numpy()
    teacher = np.array([example.choice_logprobs for example in held])
    assert scores["agreement"].value == np.mean(logp.argmax(-1) == teacher.argmax(-1))
    expected = (np.exp(teacher) * (teacher - logp)).sum(-1).mean()
    assert scores["kl_to_teacher"].value == pytest.approx(expected, rel=1e-4)
    assert {score.n for score in scores.values()} == {7}
