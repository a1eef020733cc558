"""The teacher answers every prompt of the run, with its distribution over the allowed answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from potstill.engines.local import ChoiceScorer, ScoredBatch, shared_prefix
from potstill.errors import InputError
from potstill.generate.told import told_first
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.recipe.choices import ChoiceRecipe, ChoiceTeacher
from potstill.records import Progress, Prompt, Sample, Watch
from potstill.store.ledger import Ledger, Timing
from potstill.text.tokens import Codec, Ids, choice_ids


def generate(recipe: ChoiceRecipe, ledger: Ledger, watch: Watch) -> None:
    """Fill the ledger with one sample per prompt. What is there is not asked again; a batch is stored when done."""
    loaded = load(locate(recipe.teacher.model), revision=recipe.teacher.revision)
    codec = codec_of(loaded.folder, recipe.teacher.template, name="teacher")
    prompts = ledger.prompts()
    ids = teacher_ids(recipe.teacher, codec, prompts)
    _check_fit(prompts, ids, getattr(loaded.model.config, "max_position_embeddings", None))
    choices = choice_ids(codec, recipe.answers.choices)
    keys = [sample_key(loaded.fingerprint, prompt, choices) for prompt in ids]
    there = ledger.sample_keys()
    done = frozenset(i for i, key in enumerate(keys) if key in there)
    count = len(done)
    watch(Progress(stage="generate", what="teacher answers", done=count, total=len(prompts)))
    scorer = ChoiceScorer(loaded.model, choices, prefix=shared_prefix(ids))
    for batch in scorer.score(ids, batch_tokens=recipe.teacher.batch_tokens, skip=done):
        keyed = [
            (keys[i], _sample(prompts[i], logp, recipe.answers.choices))
            for i, logp in zip(batch.positions, batch.choice_logp, strict=True)
        ]
        ledger.put_samples(keyed, arm="teacher", batch=batch.number, timing=_timing(batch))
        count += len(batch.positions)
        note = f"{len(batch.positions) / batch.seconds:.1f} prompts/s"
        watch(Progress(stage="generate", what="teacher answers", done=count, total=len(prompts), note=note))


def teacher_ids(teacher: ChoiceTeacher, codec: Codec, prompts: Sequence[Prompt]) -> list[Ids]:
    """The prompts in the teacher's tokens: instructions and worked examples first, so that all prompts share them."""
    told = told_first(teacher)
    return [codec.prefix([*told, *prompt.messages]) for prompt in prompts]


def sample_key(teacher: str, prompt: Ids, choices: Sequence[Ids]) -> str:
    """What was asked of whom: the same key is never asked twice."""
    return hashlib.sha256(repr((teacher, prompt, tuple(choices))).encode()).hexdigest()


def _sample(prompt: Prompt, logp: tuple[float, ...], choices: Sequence[str]) -> Sample:
    best = max(range(len(choices)), key=logp.__getitem__)
    return Sample(prompt_id=prompt.id, text=choices[best], choice_logp=logp)


def _timing(batch: ScoredBatch) -> Timing:
    return Timing(len(batch.positions), batch.tokens, batch.seconds)


def _check_fit(prompts: Sequence[Prompt], ids: Sequence[Ids], limit: int | None) -> None:
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if limit is not None and len(ids[longest]) > limit:
        raise InputError(
            f"the prompt '{prompts[longest].id}' has {len(ids[longest])} tokens with the teacher's examples, "
            f"but the teacher reads {limit}",
            way_out="shorten the prompt or the examples",
        )
