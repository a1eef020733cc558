"""What the learning curves of students that choose show: scores on prompts that nobody learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from potstill.evaluate.answers import answer_choices, classify, gathered
from potstill.evaluate.compare import validation_scores
from potstill.evaluate.metrics import Answers, Array
from potstill.evaluate.predictions import references
from potstill.generate.collect import usable_answers
from potstill.models.encoder import TextClassifier, encoder_tokenizer
from potstill.models.load import codec_of, folder_of
from potstill.models.locate import locate
from potstill.recipe import Recipe
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.student import Encoder, Student
from potstill.records import Example, Prompt, Score
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.text.tokens import choice_ids
from potstill.verify.calibrate import calibrated, log_softmax, read_calibration
from potstill.verify.votes import choices_of

Validate = Callable[[PreTrainedModel], dict[str, Score]]


@dataclass(frozen=True, slots=True)
class Validation:
    """Prompts and the teacher's calibrated distribution over the choices of each."""

    prompts: Sequence[Prompt]
    teacher_NC: Array

    @staticmethod
    def of_run(recipe: Recipe, run: RunFolder) -> Validation:
        """The prompts of the split `validation`."""
        with Requests(run.ledger) as requests:
            samples = usable_answers(recipe.generate, requests, most=recipe.generate.n)
            mine = (row for row in samples if row[0].split == "validation")
            rows = list(calibrated(recipe, read_calibration(run), mine))
        return Validation([p for p, _ in rows], np.array([sample.calibrated_logprobs for _, sample in rows]))

    @staticmethod
    def of_examples(held: Sequence[Example]) -> Validation:
        """Kept examples that are held back from training, where the recipe has no split."""
        prompts = [Prompt(id=example.prompt_id, split="validation", messages=example.messages[:-1]) for example in held]
        return Validation(prompts, np.array([example.choice_logprobs for example in held]))


def validator(recipe: Recipe, given: Validation) -> Validate:
    """Accuracy (where people's answers are known), agreement with the teacher and the divergence from it, of the
    student that `recipe`, an arm's, describes."""
    reference_N, logp = references(recipe, given.prompts), _answering(recipe, given.prompts)

    def validate(model: PreTrainedModel) -> dict[str, Score]:
        return validation_scores(
            Answers(logp_NC=logp(model), teacher_logp_NC=given.teacher_NC, reference_N=reference_N)
        )

    return validate


def _answering(recipe: Recipe, prompts: Sequence[Prompt]) -> Callable[[PreTrainedModel], Array]:
    """The student's ln p over the choices (N, C), in its own template or tokens."""
    choices = choices_of(recipe)
    tokens = (recipe.evaluate or Evaluate()).batch_tokens  # pyright: ignore[reportCallIssue]
    match recipe.student:
        case Encoder() as encoder:
            tokenizer = encoder_tokenizer(encoder)

            def classified(model: PreTrainedModel) -> Array:
                batches = classify(TextClassifier(model, tokenizer), prompts, batch_tokens=tokens)
                return gathered(batches, (len(prompts), len(choices)))[0]

            return classified
        case Student() as student:
            folder = folder_of(locate(student.start), revision=student.revision)
            codec = codec_of(folder, student.template, name="student")
            ids, wanted = [codec.prefix(p.messages) for p in prompts], choice_ids(codec, choices)
            return lambda model: log_softmax(answer_choices(model, ids, wanted, batch_tokens=tokens)[0])
        case None:
            raise AssertionError("a recipe of an arm has a student")
