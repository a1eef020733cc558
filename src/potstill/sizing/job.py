"""A recipe's models, its training's memory and time on GPUs, and its signals on disk, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from potstill.errors import InputError
from potstill.models.locate import Facts, facts, locate
from potstill.models.shapes import Shape
from potstill.recipe import Recipe
from potstill.recipe.methods import LogitKd
from potstill.recipe.scoring import LiveSignal
from potstill.recipe.student import AnyStudent, EncoderShape, Student
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Gguf, Local, Teacher
from potstill.sizing.memory import Learning, Memory, scoring_memory, training_memory, writing_memory
from potstill.sizing.pace import COUNTS, GPUS, Gpu, learning_flops, scoring_flops
from potstill.store.forms import Form, HiddenForm, bytes_per_token, form_of

_SCORED_AT_ONCE, _LOGIT_ROWS = 8192, 512  # what `train.teaching` has a teacher read and say at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The training prompts of a job: how many, the mean tokens and the most of one, as the student reads it (`own`) and
    as the teacher does, after its `context`; and the tokens of an answer, expected and at most."""

    prompts: int
    own: float
    in_context: float
    longest_own: int
    longest_in_context: int
    answer: float
    longest_answer: int

    @property
    def read(self) -> float:
        """Tokens of a prompt that a teacher in this process reads: where its context is half of what it reads or more,
        that is read once for all."""
        return self.own if self.in_context >= 2 * self.own else self.in_context


@dataclass(frozen=True, slots=True)
class Sized:
    """A model of the recipe, and how its weights are quantised; `parameters` is None where nothing on this machine
    tells."""

    role: str
    name: str
    parameters: int | None
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """All parameters, and those without embeddings and head: what every token is multiplied with."""

    parameters: int
    body: int


@dataclass(frozen=True, slots=True)
class Cache:
    """What a teacher's signals take on disk, with the head of hidden states."""

    form: Form
    per_token: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The job on a kind of GPU: on how few, `memory` bytes on each, what they train together. Where it fits on no
    number, `count` is None; `pass_tokens` is what would fit, None if that is not it, and `checkpointed` says whether
    gradient checkpointing would make it fit."""

    gpu: Gpu
    count: int | None
    memory: int
    tokens_per_second: float = 0
    hours: float = 0
    scoring_hours: float = 0
    pass_tokens: int | None = None
    checkpointed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """`memory` is that of training on one GPU, with passes of `pass_tokens`. `examples` and `tokens` (read while
    training, over all epochs) are the most that there can be where an answer's length is a bound."""

    models: tuple[Sized, ...]
    examples: int
    tokens: int
    pass_tokens: int
    memory: Memory | None = None
    cache: Cache | None = None
    fits: tuple[Fit, ...] = ()


def examples_of(recipe: Recipe, prompts: int) -> int:
    """The most that can be kept of the answers to so many prompts."""
    if isinstance(recipe.task, Choice):
        return prompts
    return prompts * (min(recipe.generate.n, recipe.select.keep) if recipe.verify else recipe.generate.n)


def sizes_of(recipe: Recipe, lengths: Lengths) -> Sizes | None:
    """None for a recipe without a student; without memory and GPUs for one whose shape is not known, or that is an
    encoder. Raises InputError for a model that is not there or adapters that fit nothing."""
    student = recipe.student
    if student is None:
        return None
    here = recipe.scored_by is not None and recipe.scored_by.engine is None
    scorer = facts(locate(recipe.scored_by.model)) if recipe.scored_by and here else None
    start = facts(locate(student.start)) if isinstance(student, Student) else None
    writer = facts_of_teacher(recipe.teacher)
    work = _Work(recipe, lengths, examples_of(recipe, lengths.prompts))
    models = _models(recipe, writer=writer, scorer=scorer)
    found = Sizes(models=models, examples=work.examples, tokens=work.read, pass_tokens=work.pass_tokens)
    if start is None or start.shape is None or (here and (scorer is None or scorer.shape is None)):
        return found
    assert isinstance(student, Student)
    shape, teacher = start.shape.cut(student.taken or start.layers), scorer.shape if scorer else None
    learning = _learning(work, student, shape, teacher=teacher)
    cache = None if recipe.scored_by is None else _cache(recipe, work, shape, teacher or shape)
    fits = tuple(_fit(gpu, learning, work, teacher, writer.shape if writer else None) for gpu in GPUS)
    return replace(found, memory=training_memory(learning, half=work.half), cache=cache, fits=fits)


@dataclass(frozen=True, slots=True)
class _Work:
    """Tokens of the job."""

    recipe: Recipe
    lengths: Lengths
    examples: int

    @property
    def cached(self) -> bool:
        return not isinstance(self.recipe.train.signal, LiveSignal)

    @property
    def int8(self) -> bool:
        """Whether the teacher that scores here has int8 weights."""
        scorer = self.recipe.scored_by
        return scorer is not None and scorer.quantization == "int8"

    @property
    def half(self) -> int:
        """Bytes of a number in forward and backward: these GPUs multiply bf16."""
        return 4 if self.recipe.train.precision == "fp32" else 2

    @property
    def read(self) -> int:
        return round(self.examples * (self.lengths.own + self.lengths.answer)) * self.recipe.train.epochs

    @property
    def scored_once(self) -> int:
        return round(self.examples * self.lengths.answer)

    @property
    def learnt(self) -> int:
        return self.scored_once * self.recipe.train.epochs

    @property
    def teacher_reads(self) -> int:
        """In one pass over all examples."""
        return round(self.examples * (self.lengths.read + self.lengths.answer))

    @property
    def pass_tokens(self) -> int:
        """The largest pass that comes up: a step may have less than a pass may, and an example more."""
        train = self.recipe.train
        return max(self.longest, min(train.pass_tokens, train.batch_size * self.longest))

    @property
    def longest(self) -> int:
        """Tokens of an example at most."""
        return self.lengths.longest_own + self.lengths.longest_answer


def facts_of_teacher(teacher: Teacher) -> Facts | None:
    """What writes, if it is a model of a known shape; a server may call its model what it likes."""
    try:
        return facts(locate(teacher.model))
    except InputError:
        if isinstance(teacher.engine, Local | Gguf):
            raise
        return None


def size_of(student: AnyStudent, choices: int) -> Size | None:
    """None where nothing on this machine tells."""
    if isinstance(student, Student):
        if (start := facts(locate(student.start))) is None:
            return None
        layers = student.taken or start.layers
        return Size(start.with_layers(layers), layers * start.per_layer)
    if student.shape is None or student.tokenizer is None or (tokens := facts(locate(student.tokenizer))) is None:
        return None
    return _size_of_encoder(student.shape, vocabulary=tokens.vocabulary, choices=choices)


def _size_of_encoder(shape: EncoderShape, *, vocabulary: int, choices: int) -> Size:
    """ModernBERT's, with a feed-forward block twice as wide as the model. Its first layer has no norm before attention,
    its embeddings have one."""
    width = shape.hidden
    body = shape.layers * (4 * width**2 + 3 * width * 2 * width + 2 * width)
    head = width**2 + width + (width + 1) * choices
    return Size(vocabulary * width + body + width + head, body)


def _models(recipe: Recipe, *, writer: Facts | None, scorer: Facts | None) -> tuple[Sized, ...]:
    def sized(role: str, name: str, found: Facts | None, quantization: str | None = None) -> Sized:
        return Sized(role, name, found.parameters if found else None, quantization)

    scored_by, student = recipe.train.scored_by, recipe.student
    assert student is not None
    size = size_of(student, len(recipe.task.choices) if isinstance(recipe.task, Choice) else 0)
    return (
        sized("teacher", recipe.teacher.model, writer),
        *((sized("scored by", scored_by.model, scorer, scored_by.quantization),) if scored_by else ()),
        Sized("student", student.start or "an encoder of random weights", size.parameters if size else None),
    )


def _learning(work: _Work, student: Student, shape: Shape, *, teacher: Shape | None) -> Learning:
    train, own = work.recipe.train, work.recipe.train.on_policy
    if own is not None and own.engine is not None:  # a server has its own memory
        own = None
    form = form_of(train.signal)
    here = work.recipe.scored_by is not None and work.recipe.scored_by.engine is None
    return Learning(
        shape=shape,
        pass_tokens=work.pass_tokens,
        frozen_embeddings=student.keeps_embeddings,
        frozen_layers=student.freeze_layers,
        lora=student.lora,
        averaged=train.average > 0,
        checkpointed=train.gradient_checkpointing,
        dense=isinstance(train.method, LogitKd) and here and (form is None or isinstance(form, HiddenForm)),
        teacher=teacher if form is None else None,
        teacher_int8=work.int8,
        slots=own.slots if own else 0,
        capacity=work.lengths.longest_own + own.max_tokens if own else 0,
        teacher_capacity=work.lengths.longest_in_context + own.max_tokens if own and own.teacher_mix else 0,
    )


def _cache(recipe: Recipe, work: _Work, student: Shape, teacher: Shape) -> Cache | None:
    form = form_of(recipe.train.signal)
    if form is None:
        return None
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    each = bytes_per_token(form, vocabulary, teacher.width, tokens_per_example=max(1, work.lengths.answer))
    head = work.half * teacher.embeddings if isinstance(form, HiddenForm) else 0
    return Cache(form, each, work.scored_once, round(each * work.scored_once) + head)


def _fit(gpu: Gpu, learning: Learning, work: _Work, teacher: Shape | None, writer: Shape | None) -> Fit:
    needed = [_needed(work, learning, teacher, writer, gpus) for gpus in COUNTS]
    at = next((at for at, size in enumerate(needed) if size <= gpu.bytes), None)
    if at is None:
        again = replace(learning, checkpointed=True)
        return Fit(
            gpu=gpu,
            count=None,
            memory=min(needed),
            pass_tokens=_smaller_pass(gpu, learning, work, teacher, writer),
            checkpointed=any(_needed(work, again, teacher, writer, gpus) <= gpu.bytes for gpus in COUNTS),
        )
    rate = gpu.flops_per_second(half=work.half) * COUNTS[at]
    flops, scoring = _flops(learning, work, teacher)
    return Fit(
        gpu=gpu,
        count=COUNTS[at],
        memory=needed[at],
        tokens_per_second=work.read * rate / flops if flops else 0,
        hours=flops / rate / 3600,
        scoring_hours=scoring / rate / 3600,
    )


def _flops(learning: Learning, work: _Work, teacher: Shape | None) -> tuple[float, float]:
    """Of training, with all that a live teacher says in it, and of filling a cache before."""
    lengths = work.lengths
    flops = learning_flops(learning, read=work.read, learnt=work.learnt, context=(lengths.own + lengths.answer) / 2)
    if teacher is None:
        return flops, 0
    context = (lengths.in_context + lengths.answer) / 2
    scoring = scoring_flops(teacher, read=work.teacher_reads, scored=work.scored_once, context=context)
    if not work.cached:
        return flops + scoring * work.recipe.train.epochs, 0
    if learning.dense:  # its head, again in every epoch
        flops += scoring_flops(teacher, read=0, scored=work.learnt, context=0)
    return flops, scoring


def _needed(work: _Work, learning: Learning, teacher: Shape | None, writer: Shape | None, gpus: int) -> int:
    """Bytes on each GPU in the stage of this process that needs the most."""
    half = work.half
    stages = [training_memory(learning, gpus=gpus, half=half).total]
    if teacher is not None and work.cached:
        read, made = _SCORED_AT_ONCE, _LOGIT_ROWS
        stages.append(scoring_memory(teacher, tokens=read, logits=made, int8=work.int8, gpus=gpus, half=half))
    engine = work.recipe.teacher.engine
    if writer is not None and isinstance(engine, Local) and isinstance(work.recipe.task, Choice):
        tokens = max(engine.batch_tokens, work.lengths.longest_in_context)
        stages.append(scoring_memory(writer, tokens=tokens, logits=_LOGIT_ROWS, gpus=gpus, half=half))
    elif writer is not None and isinstance(engine, Local):
        capacity = work.lengths.longest_in_context + work.lengths.longest_answer
        stages.append(writing_memory(writer, slots=engine.slots, capacity=capacity, gpus=gpus, half=half))
    return max(stages)


def _smaller_pass(gpu: Gpu, learning: Learning, work: _Work, teacher: Shape | None, writer: Shape | None) -> int | None:
    """The first half, quarter, ... of the pass that fits on some number of them. An example is never cut."""
    tokens, longest = learning.pass_tokens // 2, work.longest
    while 2 * tokens > longest:
        smaller = replace(learning, pass_tokens=max(tokens, longest))
        if any(_needed(work, smaller, teacher, writer, gpus) <= gpu.bytes for gpus in COUNTS):
            return tokens
        tokens //= 2
    return None
