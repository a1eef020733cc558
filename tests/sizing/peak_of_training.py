"""Trains a model of random weights for two steps of two passes and prints the bytes that it took and those promised."""

from __future__ import annotations

import json
import sys

import torch
from shaped import config_of
from transformers import AutoModelForCausalLM

from potstill.evaluate.memory import peak_memory
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype
from potstill.models.lora import adapt
from potstill.models.shapes import Shape
from potstill.models.student import freeze
from potstill.recipe.student import Lora
from potstill.recipe.train import TrainSettings
from potstill.sizing.memory import Learning, training_memory
from potstill.train.batch import Row, Whole, collate, passes
from potstill.train.methods import terms
from potstill.train.state import TrainState

SHAPE = Shape(
    architecture="qwen3",
    layers=8,
    width=256,
    heads=4,
    kv_heads=2,
    head_width=128,
    inner=768,
    vocabulary=512,
    tied=True,
)


def main(kind: str, tokens: int) -> None:
    lora = Lora(rank=8, alpha=16) if kind == "lora" else None
    again = kind == "checkpointed"
    learning = Learning(shape=SHAPE, pass_tokens=tokens, lora=lora, averaged=kind == "averaged", checkpointed=again)
    settings = TrainSettings(pass_tokens=tokens, gradient_checkpointing=again)  # pyright: ignore[reportCallIssue]
    rows = [Row(prefix=(1,), target=tuple(range(2, 257))) for _ in range(2 * tokens // 256)]
    half = compute_dtype().itemsize
    steps(learning, [rows[:1]], settings)  # what the first use of everything takes is no part of the job
    with peak_memory() as peak:
        steps(learning, [rows, rows], settings)  # the first step makes AdamW's moments, the second has them all along
    print(json.dumps({"measured": peak.added_bytes, "promised": training_memory(learning, half=half).total}))


def steps(learning: Learning, batches: list[list[Row]], settings: TrainSettings) -> None:
    model = AutoModelForCausalLM.from_config(config_of(learning.shape), dtype=torch.float32)
    if learning.lora is not None:
        adapt(model, learning.lora, seed=0)
    freeze(model, embeddings=learning.frozen_embeddings, layers=learning.frozen_layers)
    state = TrainState(model.train(), settings)
    for rows in batches:
        for part in passes(rows, settings.pass_tokens):
            batch = collate(part, (), whole=Whole.of(rows), device=model.device)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
                hidden_RD = hidden_rows(
                    model, batch.documents, batch.at_R, gradient_checkpointing=learning.checkpointed
                )
            loss, _ = terms(settings.method, model, hidden_RD.to(compute_dtype()), batch)
            loss.backward()
        state.update(rate=1e-4)
        if learning.averaged:
            state.take_into_average()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
