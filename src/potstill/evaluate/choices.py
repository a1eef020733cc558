"""Arms that choose: each answers the test prompts once, and is timed and measured on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from potstill.engines.local import ChoiceScorer, ScoredBatch, shared_prefix
from potstill.evaluate.answers import answer_choices, classify, encoded_lengths, write_answers
from potstill.evaluate.base import base_student
from potstill.evaluate.ledgers import ArmTest, Measured, ScoredPrompts, open_scored
from potstill.evaluate.memory import Peak, peak_memory
from potstill.evaluate.predictions import require_references
from potstill.evaluate.tfidf import fit_tfidf, predict
from potstill.generate.context import context_of
from potstill.models.encoder import TextClassifier, asked_text, initial_encoder, load_encoder
from potstill.models.load import codec_of, compute_dtype, load
from potstill.models.locate import locate
from potstill.recipe.student import Encoder, Student
from potstill.recipe.teacher import Local
from potstill.store.examples import read_examples
from potstill.store.requests import Requests, Timing
from potstill.text.tokens import Codec, choice_ids
from potstill.verify.votes import choices_of

BASE = "base"


def evaluate_choices(test: ArmTest) -> Measured:
    """The answers go into the arm's ledger."""
    recipe = test.recipe
    require_references(recipe, test.prompts())
    match test.arm:
        case "teacher":
            test.answer(recipe.teacher, recipe.generate.model_copy(update={"budget": test.settings.budget}))
            return _measured_teacher(test)
        case "tfidf":
            return _tfidf(test)
        case _:
            with open_scored(test, choices_of(recipe)) as scored:
                match test.student:
                    case Encoder() as encoder:
                        return _encoder(scored, encoder)
                    case Student() as student:
                        return _language_model(scored, student)


# the teacher


def _measured_teacher(test: ArmTest) -> Measured:
    """A model in this process is timed once more, without its cached prefix."""
    teacher = test.recipe.teacher
    if not isinstance(teacher.engine, Local):
        return {}
    prompts, settings = test.prompts(), test.settings
    with peak_memory() as peak:
        loaded = load(locate(teacher.model), revision=teacher.revision)
        codec = codec_of(loaded.folder, teacher.engine.template, name="teacher")
        ids = [codec.prefix([*context_of(teacher), *prompt.messages]) for prompt in prompts]
        asked = ids[: settings.uncached_prompts]
        _, uncached = answer_choices(
            loaded.model,
            asked,
            choice_ids(codec, choices_of(test.recipe)),
            batch_tokens=settings.batch_tokens,
            on_batch=lambda done: test.tell(done, len(asked), note="prefix not cached"),
        )
    with Requests(test.run.ledger) as requests:
        cached = requests.timing()
    tokens = sum(map(len, ids)) / len(ids)
    return {
        **_speed(cached),
        "prompts_per_second_uncached": uncached.prompts / uncached.seconds,
        "tokens_per_prompt": tokens,
        "tokens_per_prompt_cached": tokens - len(shared_prefix(ids)),
        "parameters": float(loaded.model.num_parameters()),
        **_memory(peak),
    }


def _speed(timing: Timing) -> Measured:
    return {"prompts_per_second": timing.prompts / timing.seconds} if timing.seconds else {}


def _memory(peak: Peak) -> Measured:
    return {} if peak.added_bytes is None else {"peak_memory_bytes": float(peak.added_bytes)}


# students


def _language_model(scored: ScoredPrompts, student: Student) -> Measured:
    """The arm's model folder, nothing cached; `base` is made of what the student starts from."""
    test, settings = scored.test, scored.test.settings
    with peak_memory() as peak:
        model, codec = _model(test, student)
        ids = [codec.prefix(prompt.messages) for prompt in scored.prompts]
        scorer = ChoiceScorer(model, choice_ids(codec, scored.choices))
        lengths = [len(prefix) for prefix in ids]
        for batch in scorer.score(ids, batch_tokens=settings.batch_tokens, skip=scored.answered):
            scored.put(batch, lengths)
    measured = _measured(scored, model, peak)
    if test.arm != BASE:
        written = write_answers(test.run.arm_model(test.arm), scored.prompts[: settings.generate_prompts])
        exact = [answer in scored.choices and stopped for answer, stopped in written]
        measured |= {"exact_answers": sum(exact) / len(exact), "exact_answers_n": float(len(exact))}
    return measured


def _model(test: ArmTest, student: Student) -> tuple[PreTrainedModel, Codec]:
    if test.arm == BASE:
        model, codec, _ = base_student(student, test.run, seed=test.recipe.seed)
        for parameter in model.parameters():  # as `load` would: what is no weight stays in fp32
            parameter.data = parameter.data.to(compute_dtype())
        return model, codec
    loaded = load(locate(str(test.run.arm_model(test.arm))))
    return loaded.model, codec_of(loaded.folder, None, name="student")


def _encoder(scored: ScoredPrompts, encoder: Encoder) -> Measured:
    test = scored.test
    with peak_memory() as peak:
        classifier = _classifier(test, encoder, scored.choices)
        lengths = encoded_lengths(classifier, [asked_text(prompt.messages) for prompt in scored.prompts])
        tokens = test.settings.batch_tokens
        for batch in classify(classifier, scored.prompts, batch_tokens=tokens, skip=scored.answered):
            scored.put(batch, lengths)
    return _measured(scored, classifier.model, peak)


def _classifier(test: ArmTest, encoder: Encoder, choices: Sequence[str]) -> TextClassifier:
    if test.arm == BASE:
        return initial_encoder(encoder, choices, seed=test.recipe.seed)
    return load_encoder(test.run.arm_model(test.arm))


def _measured(scored: ScoredPrompts, model: PreTrainedModel, peak: Peak) -> Measured:
    timing = scored.requests.timing()
    return {
        **_speed(timing),
        "tokens_per_prompt": timing.tokens / timing.prompts,
        "parameters": float(model.num_parameters()),
        **({} if scored.test.arm == BASE else _memory(peak)),
    }


# a control without a language model


def _tfidf(test: ArmTest) -> Measured:
    """It learns the very labels that the student learns."""
    choices = choices_of(test.recipe)
    examples = list(read_examples(test.run.kept(verified=True)))
    labels = [choices.index(example.messages[-1].content) for example in examples]
    with open_scored(test, choices) as scored:
        texts = [prompt.text for prompt in scored.prompts]
        start = time.perf_counter()
        if len(set(labels)) > 1:
            model = fit_tfidf([example.messages[-2].content for example in examples], labels, seed=test.recipe.seed)
            logp_NC, measured = predict(model, texts, len(choices))
        else:  # the teacher only ever gave one answer, and so does this
            logp_NC, measured = np.full((len(texts), len(choices)), np.log(1e-9)), {}
            logp_NC[:, labels[0]] = 0.0
        open_now = tuple(sorted(scored.questions))
        if open_now:
            rows = tuple(tuple(logp_NC[position].tolist()) for position in open_now)
            batch = ScoredBatch(0, open_now, rows, 0, time.perf_counter() - start)
            scored.put(batch, [0] * len(texts))
    return measured
