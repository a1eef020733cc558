"""The control `base`: the student before its first step, with the layers that it has in the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.models.save import save_model
from potstill.models.student import random_weights, take_layers
from potstill.recipe.student import Student
from potstill.store.run import STUDENT, RunFolder, read_json
from potstill.text.tokens import Codec


def base_student(student: Student, run: RunFolder, *, seed: int) -> tuple[PreTrainedModel, Codec, Path]:
    """The model, what it reads and writes, and the folder that its tokenizer comes from."""
    start = load(locate(student.start), revision=student.revision, dtype=torch.float32)
    trained = read_json(run.arm(STUDENT) / "trained.json") or {}
    layers = trained.get("layers") or range(start.model.config.num_hidden_layers)
    random = student.weights == "random"
    model = random_weights(start.model, layers, seed=seed) if random else take_layers(start.model, layers)
    return model, codec_of(start.folder, student.template, name="student"), start.folder


def saved_base(student: Student, run: RunFolder, *, seed: int, mark: str) -> Path:
    """Its model folder, made where it is missing; one of another `mark` is removed."""
    folder = run.test("base") / f"model-{mark}"
    if not folder.is_dir():
        for older in folder.parent.glob("model-*"):
            shutil.rmtree(older)
        model, codec, start = base_student(student, run, seed=seed)
        end = codec.end_of_turn("x")
        save_model(model, codec, tokenizer_from=start, end_of_turn=end, max_new_tokens=9, to=folder)
    return folder
