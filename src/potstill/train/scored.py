"""Who gives the soft targets of whole answers: rows as the teacher reads them; the teacher itself, or a cache of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.errors import InputError
from potstill.generate.context import context_of
from potstill.models.identity import fingerprint
from potstill.models.int8 import to_int8
from potstill.models.load import codec_of, compute_dtype, folder_of, load
from potstill.models.locate import Located, cache_folder, facts, locate
from potstill.models.templates import tokenizer_folder
from potstill.recipe.methods import LogitKd
from potstill.recipe.scoring import ScoredBy
from potstill.recipe.whole import Recipe
from potstill.records import Example, Progress, Watch
from potstill.store.forms import Form, HiddenForm, TopKForm, form_of
from potstill.store.signals import Identity
from potstill.text.tokens import Codec
from potstill.train.batch import Row
from potstill.train.rows import require_some, rows_and_examples
from potstill.train.served import ServedTeacher
from potstill.train.teaching import Kept, LiveTeacher, Teach, from_cache
from potstill.train.world import ALONE, World


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """The model that scores, found: its folder (of a served one, its tokenizer's), and what it reads. Its weights are
    loaded when they are needed."""

    named: ScoredBy
    folder: Path
    codec: Codec

    @staticmethod
    def of(named: ScoredBy) -> ScoringModel:
        if named.tokenizer is None:
            folder = folder_of(locate(named.model), revision=named.revision)
        else:
            folder = tokenizer_folder(named.tokenizer)
        return ScoringModel(named, folder, codec_of(folder, named.template, name="teacher"))


def scored_rows(
    recipe: Recipe,
    scorer: ScoringModel,
    examples: Sequence[Example],
    codec: Codec,
    left_out: Counter[str] | None = None,
) -> list[Row]:
    """The rows with their prompts as the teacher reads them: after the context that it had when it wrote. `left_out`
    counts those that one of the two cannot read.

    Raises InputError where the two models do not share their tokens: a token's id must mean the same to both.
    """
    require_same_tokens(scorer.codec, codec)
    told = context_of(recipe.teacher)
    alike = scorer.codec.end_of_turn("x") == codec.end_of_turn("x")
    reasoning = recipe.train.learn == "reasoning and answer"
    rows: list[Row] = []
    left_out = Counter() if left_out is None else left_out
    for row, example in rows_and_examples(examples, codec, reasoning=reasoning, left_out=left_out):
        try:
            read = scorer.codec.question([*told, *example.messages[:-1]], tools=example.tools)
        except InputError as why:
            left_out[why.problem] += 1
        else:
            rows.append(replace(row, teacher_prefix=read, ends_alike=alike))
    require_some(rows, left_out)
    return rows


def teacher_of(  # noqa: PLR0913
    recipe: Recipe,
    scorer: ScoringModel,
    rows: Sequence[Row],
    student: PreTrainedModel,
    *,
    place: Path,
    watch: Watch,
    world: World,
) -> Teach:
    """The teacher itself, or what a cache has of it; what the cache lacks is computed first, by the first process.
    `place` is the run folder."""
    named, form = scorer.named, form_of(recipe.train.signal)

    def live(world: World = ALONE) -> LiveTeacher | ServedTeacher:
        if named.engine is not None:
            k = form.k if isinstance(form, TopKForm) else named.k
            return ServedTeacher(named.model, named.licence, named.engine, k=k)
        found = Located(named.model, "folder", scorer.folder)
        if named.quantization is None:
            model = load(found, on=world.loads_on).model
        else:  # before a device holds any of it
            model = to_int8(load(found, on=torch.device("cpu")).model, name=named.model)
        return LiveTeacher(model.requires_grad_(False), [row.teacher_prefix for row in rows], world)

    if form is None:
        return live(world)
    identity = _identity(recipe, scorer, form, _outcomes(student, scorer))
    key = hashlib.sha256(repr((identity, form)).encode()).hexdigest()[:16]
    shared = cache_folder()
    if named.engine is not None and named.revision is None:
        shared = place
        note = "kept in the run folder: 'train.scored_by' states no revision, so no other run may share them"
        watch(Progress(stage="train", what="teacher's signals", done=0, total=len(rows), note=note))
    chosen = recipe.train.signals_folder
    folder = shared / "signals" / key if chosen is None else Path(chosen)
    kept = Kept(folder=folder, identity=identity, form=form, load=live)
    return world.in_turn(lambda: from_cache(kept, rows, watch))


def _identity(recipe: Recipe, scorer: ScoringModel, form: Form, vocabulary: int) -> Identity:
    method = recipe.train.method
    return Identity(
        teacher=fingerprint(scorer.folder) if scorer.named.engine is None else f"served {scorer.named.model}",
        revision=scorer.named.revision or "",
        tokenizer=hashlib.sha256(scorer.codec.tokenizer.to_str().encode()).hexdigest(),
        template=hashlib.sha256(scorer.codec.template.source.encode()).hexdigest(),
        vocabulary=vocabulary,
        dtype=_dtype(scorer.named),
        temperature=method.temperature if isinstance(method, LogitKd) and not isinstance(form, HiddenForm) else 1.0,
    )


def _dtype(named: ScoredBy) -> str:
    """`bfloat16`, or `bfloat16 with int8 weights`."""
    if named.engine is not None:
        return "served"
    computed = str(compute_dtype()).removeprefix("torch.")
    return computed if named.quantization is None else f"{computed} with {named.quantization} weights"


def _outcomes(student: PreTrainedModel, scorer: ScoringModel) -> int:
    """How many tokens both heads have: what one has beyond the other is padding."""
    ours: Any = student.get_output_embeddings()
    if scorer.named.engine is not None:
        return len(ours.weight)
    theirs = facts(Located(scorer.named.model, "folder", scorer.folder))
    return min(len(ours.weight), theirs.vocabulary if theirs else len(ours.weight))


def require_same_tokens(teacher: Codec, student: Codec) -> None:
    """Raises InputError where a token of one is another or none for the other."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    strange = next((token for token, number in ours.items() if theirs.get(token) != number), None)
    if strange is not None:
        raise InputError(
            f"teacher and student do not share their tokens: {strange!r} is {ours[strange]} for the student and "
            f"{theirs.get(strange, 'nothing')} for the teacher",
            way_out="learn by 'sft', or take two models of one family",
        )
