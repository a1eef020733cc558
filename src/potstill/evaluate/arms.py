"""The evaluation stage: every arm answers the test prompts once, is timed and measured, and is compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from potstill.engines.local import shared_prefix
from potstill.evaluate.answers import answer_choices, write_answers
from potstill.evaluate.compare import Scores, as_indices, score_arms, validation_scores
from potstill.evaluate.encoder import classify
from potstill.evaluate.floor import answer_floor, fit_floor
from potstill.evaluate.memory import peak_memory
from potstill.evaluate.metrics import Answers, Array
from potstill.generate.teacher import teacher_ids
from potstill.models.encoder import TextClassifier, encoder_tokenizer, load_encoder
from potstill.models.load import Loaded, codec_of, folder_of, load
from potstill.models.locate import locate
from potstill.models.student import first_layers
from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Progress, Prompt, Score, Split, Watch
from potstill.store.examples import read_examples
from potstill.store.files import write_atomic
from potstill.store.ledger import Ledger
from potstill.store.run import Run
from potstill.text.tokens import Codec, choice_ids
from potstill.verify.calibrate import log_softmax
from potstill.verify.teacher import read_calibration


def validator(run: Run, ledger: Ledger) -> Callable[[PreTrainedModel], dict[str, Score]]:
    """Scores a model on the validation prompts, for the learning curves."""
    codec = student_codec(run.recipe)
    prompts = _split(ledger, "validation")
    ids = [codec.prefix(p.messages) for p in prompts]
    choices = choice_ids(codec, run.recipe.answers.choices)
    teacher_NC = _teacher_logp(run, ledger, prompts)

    def validate(model: PreTrainedModel) -> dict[str, Score]:
        logp_NC, _ = answer_choices(model, ids, choices, batch_tokens=run.recipe.evaluate.batch_tokens)
        return validation_scores(_answers(run.recipe, prompts, log_softmax(logp_NC), teacher_NC))

    return validate


def encoder_validator(run: Run, ledger: Ledger) -> Callable[[PreTrainedModel], dict[str, Score]]:
    """The same for the encoder, read by the tokenizer that its folder will have."""
    encoder, prompts = run.recipe.encoder, _split(ledger, "validation")
    assert encoder is not None
    teacher_NC = _teacher_logp(run, ledger, prompts)
    folder = folder_of(locate(run.recipe.teacher.model), revision=run.recipe.teacher.revision)
    tokenizer = encoder_tokenizer(encoder, teacher_folder=folder)

    def validate(model: PreTrainedModel) -> dict[str, Score]:
        batch_tokens = run.recipe.evaluate.batch_tokens
        logp_NC, _ = classify(TextClassifier(model, tokenizer), prompts, batch_tokens=batch_tokens)
        return validation_scores(_answers(run.recipe, prompts, logp_NC, teacher_NC))

    return validate


def student_codec(recipe: ChoiceRecipe) -> Codec:
    folder = folder_of(locate(recipe.teacher.model), revision=recipe.teacher.revision)
    return codec_of(folder, recipe.student.template, name="student")


def evaluate_teacher(run: Run, ledger: Ledger, watch: Watch) -> None:
    """The teacher's answers are in the ledger already; here it is timed without its cached prefix."""
    recipe, prompts = run.recipe, _split(ledger, "test")
    with peak_memory() as peak:
        loaded = load(locate(recipe.teacher.model), revision=recipe.teacher.revision)
        codec = codec_of(loaded.folder, recipe.teacher.template, name="teacher")
        ids = teacher_ids(recipe.teacher, codec, prompts)
        asked = ids[: recipe.evaluate.uncached_prompts]
        choices = choice_ids(codec, recipe.answers.choices)
        _, uncached = answer_choices(
            loaded.model,
            asked,
            choices,
            batch_tokens=recipe.evaluate.batch_tokens,
            on_batch=_tell(watch, "teacher, prefix not cached", len(asked)),
        )
    cached = ledger.timing("teacher")
    measured = {
        "prompts_per_second": cached.prompts / cached.seconds,
        "prompts_per_second_uncached": uncached.prompts / uncached.seconds,
        "tokens_per_prompt": sum(map(len, ids)) / len(ids),
        "tokens_per_prompt_cached": sum(map(len, ids)) / len(ids) - len(shared_prefix(ids)),
        "parameters": float(loaded.model.num_parameters()),
        **_known("peak_memory_bytes", peak.added_bytes),
    }
    raw_NC = _raw_logp(ledger, prompts)
    _store(ledger, "teacher", prompts, read_calibration(run).apply(raw_NC), measured)
    _store(ledger, "teacher_raw", prompts, log_softmax(raw_NC), {})


def evaluate_model(run: Run, ledger: Ledger, arm: str, watch: Watch) -> None:
    """A model arm: `base` is made from the teacher, the others are loaded from their folders."""
    recipe, prompts = run.recipe, _split(ledger, "test")
    with peak_memory() as peak:
        model, codec = _model_of(run, arm)
        ids = [codec.prefix(p.messages) for p in prompts]
        logp_NC, timing = answer_choices(
            model,
            ids,
            choice_ids(codec, recipe.answers.choices),
            batch_tokens=recipe.evaluate.batch_tokens,
            on_batch=_tell(watch, arm, len(ids)),
        )
    measured = {
        "prompts_per_second": timing.prompts / timing.seconds,
        "tokens_per_prompt": timing.tokens / timing.prompts,
        "parameters": float(model.num_parameters()),
        **({} if arm == "base" else _known("peak_memory_bytes", peak.added_bytes)),
    }
    if arm == "student":
        written = write_answers(run.model, prompts[: recipe.evaluate.generate_prompts])
        exact = [answer in recipe.answers.choices and stopped for answer, stopped in written]
        measured |= {"exact_answers": sum(exact) / len(exact), "exact_answers_n": float(len(exact))}
    _store(ledger, arm, prompts, log_softmax(logp_NC), measured)


def evaluate_encoder(run: Run, ledger: Ledger, watch: Watch) -> None:
    """The encoder's folder, on the same test prompts."""
    prompts = _split(ledger, "test")
    with peak_memory() as peak:
        classifier = load_encoder(run.arm_model("encoder"))
        logp_NC, timing = classify(
            classifier,
            prompts,
            batch_tokens=run.recipe.evaluate.batch_tokens,
            on_batch=_tell(watch, "encoder", len(prompts)),
        )
    measured = {
        "prompts_per_second": timing.prompts / timing.seconds,
        "tokens_per_prompt": timing.tokens / timing.prompts,
        "parameters": float(classifier.model.num_parameters()),
        **_known("peak_memory_bytes", peak.added_bytes),
    }
    _store(ledger, "encoder", prompts, logp_NC, measured)


def evaluate_floor(run: Run, ledger: Ledger, watch: Watch) -> None:
    """TF-IDF and logistic regression on the very labels that the student learnt from."""
    examples, prompts = read_examples(run.examples), _split(ledger, "test")
    choices = run.recipe.answers.choices
    labels = as_indices([e.answer for e in examples], choices)
    texts = [e.messages[-1].content for e in examples]
    if len(set(labels.tolist())) > 1:
        model = fit_floor(texts, labels.tolist(), seed=run.recipe.seed)
        logp_NC, measured = answer_floor(model, [p.text for p in prompts], len(choices))
    else:  # the teacher only ever gave one answer, and so does its floor
        logp_NC, measured = np.full((len(prompts), len(choices)), np.log(1e-9)), {}
        logp_NC[:, labels[0]] = 0.0
    _store(ledger, "floor", prompts, log_softmax(logp_NC), measured)
    watch(Progress(stage="evaluate", what="floor", done=len(prompts), total=len(prompts)))


def compare(run: Run, ledger: Ledger, arms: Sequence[str], watch: Watch) -> None:
    """Everything the arms answered becomes scores.json."""
    recipe, prompts = run.recipe, _split(ledger, "test")
    predictions = {arm: ledger.predictions(arm) for arm in arms}
    logp = {arm: np.array([rows[p.id] for p in prompts]) for arm, rows in predictions.items()}
    answers = {arm: _answers(recipe, prompts, rows, logp["teacher"]) for arm, rows in logp.items()}
    scores, paired, gaps = score_arms(answers, count=recipe.evaluate.resamples, seed=recipe.seed)
    table = {
        "recipe": recipe.name,
        "arms": {arm: _with_measured(scores, arm, ledger.measured(arm), len(prompts)) for arm in arms},
        "paired": paired,
        "gap_recovered": gaps,
        "majority": _majority(prompts),
        "cost": _cost(ledger),
        "teacher": {"model": recipe.teacher.model, "licence": recipe.teacher.licence},
        "calibration": asdict(read_calibration(run)),
    }
    write_atomic(run.scores, json.dumps(table, indent=1))
    watch(Progress(stage="evaluate", what="comparison", done=len(arms), total=len(arms)))


def _with_measured(scores: Scores, arm: str, measured: dict[str, float], n: int) -> dict[str, Any]:
    counts = {"exact_answers": int(measured.pop("exact_answers_n", 0))}
    named = {name: Score(value=value, n=counts.get(name, n)) for name, value in measured.items()}
    return {name: score.as_dict() for name, score in (scores[arm] | named).items()}


def _majority(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What always giving the commonest answer would score: the bar below every other."""
    answer, count = Counter(p.reference for p in prompts).most_common(1)[0]
    return {"answer": answer, "accuracy": count / len(prompts)}


def _cost(ledger: Ledger) -> dict[str, Any]:
    teacher, student = ledger.measured("teacher"), ledger.measured("student")
    asked = ledger.timing("teacher")
    return {
        "seconds": sum(ledger.stage_seconds().values()),
        "tokens": asked.tokens,
        "money": 0.0,
        "per_1000_answers": {
            "teacher_seconds": 1000 / teacher["prompts_per_second"],
            "student_seconds": 1000 / student["prompts_per_second"],
        },
    }


def _model_of(run: Run, arm: str) -> tuple[PreTrainedModel, Codec]:
    if arm == "base":
        teacher: Loaded = load(locate(run.recipe.teacher.model), revision=run.recipe.teacher.revision)
        return first_layers(teacher.model, run.recipe.student.layers), student_codec(run.recipe)
    loaded = load(locate(str(run.arm_model(arm))))
    return loaded.model, codec_of(loaded.folder, None, name="student")


def _answers(recipe: ChoiceRecipe, prompts: Sequence[Prompt], logp_NC: Array, teacher_NC: Array) -> Answers:
    grades = [p.grade for p in prompts]
    return Answers(
        logp_NC=logp_NC,
        teacher_logp_NC=teacher_NC,
        reference_N=as_indices([str(p.reference) for p in prompts], recipe.answers.choices),
        grade_N=None if None in grades else np.array(grades, dtype=np.float64),
    )


def _split(ledger: Ledger, name: Split) -> list[Prompt]:
    return [p for p in ledger.prompts() if p.split == name]


def _raw_logp(ledger: Ledger, prompts: Sequence[Prompt]) -> Array:
    samples = ledger.samples()
    return np.array([samples[p.id].choice_logp for p in prompts])


def _teacher_logp(run: Run, ledger: Ledger, prompts: Sequence[Prompt]) -> Array:
    return read_calibration(run).apply(_raw_logp(ledger, prompts))


def _store(ledger: Ledger, arm: str, prompts: Sequence[Prompt], logp_NC: Array, measured: dict[str, float]) -> None:
    rows = {p.id: row for p, row in zip(prompts, logp_NC.tolist(), strict=True)}
    ledger.put_predictions(arm, rows, measured)


def _known(name: str, value: int | None) -> dict[str, float]:
    return {} if value is None else {name: float(value)}


def _tell(watch: Watch, what: str, total: int) -> Callable[[int], None]:
    return lambda done: watch(Progress(stage="evaluate", what=what, done=done, total=total))
