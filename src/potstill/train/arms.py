"""The arms of a run: the student and the controls that are trained beside it, on the same examples for as long."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from potstill.models.load import Loaded, codec_of, load
from potstill.models.locate import locate
from potstill.models.save import save_model
from potstill.models.student import first_layers, freeze, random_weights
from potstill.recipe.choices import ChoiceRecipe
from potstill.recipe.methods import Sft
from potstill.records import Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.examples import read_examples
from potstill.store.ledger import Ledger, Timing
from potstill.store.metrics import Metrics
from potstill.store.run import Run
from potstill.store.sinks import sinks_of
from potstill.text.tokens import choice_ids
from potstill.train.loop import Job, Validate, fit
from potstill.train.rows import training_rows

TRAINED_CONTROLS = ("from_scratch", "hard_labels")


def trained_arms(recipe: ChoiceRecipe) -> Sequence[str]:
    return ("student", *(c for c in TRAINED_CONTROLS if c in recipe.controls))


def untrained(recipe: ChoiceRecipe, teacher: PreTrainedModel, arm: str) -> PreTrainedModel:
    """The arm before its first step. Only what is the teacher's is frozen: random weights all learn."""
    if arm == "from_scratch":
        return random_weights(teacher, range(recipe.student.layers), seed=recipe.seed)
    student = first_layers(teacher, recipe.student.layers)
    freeze(student, embeddings=recipe.student.freeze_embeddings, layers=recipe.student.freeze_layers)
    return student


def load_teacher(recipe: ChoiceRecipe) -> Loaded:
    return load(locate(recipe.teacher.model), revision=recipe.teacher.revision)


def train_arm(run: Run, ledger: Ledger, arm: str, *, fingerprint: str, validate: Validate, watch: Watch) -> None:
    """Train one arm from wherever it stands and save its model folder; its checkpoints are then dropped."""
    recipe = run.recipe
    teacher = load_teacher(recipe)
    codec = codec_of(teacher.folder, recipe.student.template, name="student")
    model = untrained(recipe, teacher.model, arm)
    job = Job(
        arm=arm,
        rows=training_rows(read_examples(run.examples), codec, recipe.answers.choices),
        choices=choice_ids(codec, recipe.answers.choices),
        method=recipe.train.method if arm == "student" else Sft(kind="sft"),
        settings=recipe.train,
        seed=recipe.seed,
        fingerprint=fingerprint,
        checkpoints=Checkpoints(run.checkpoints(arm), better=recipe.train.better),
        metrics=Metrics(run.metrics, sinks_of(recipe.train, run.folder)),
        validate=validate,
        watch=watch,
        spell=codec.text,
    )
    folder = teacher.folder
    del teacher  # half a gigabyte that training has better use for
    with job.metrics:
        fitted = fit(model, job)
    longest = max(len(codec.answer(choice)) for choice in recipe.answers.choices)
    save_model(
        model,
        codec,
        tokenizer_from=folder,
        end_of_turn=codec.end_of_turn(recipe.answers.choices[0]),
        max_new_tokens=longest + 8,
        to=run.arm_model(arm),
    )
    ledger.put_timing(f"train:{arm}", 0, Timing(len(job.rows), fitted.tokens, fitted.seconds))
    job.checkpoints.clear()
