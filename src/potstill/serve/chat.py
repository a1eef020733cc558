"""`potstill chat`: ask the student of a run, from its model folder alone. Its weights are read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from potstill.errors import InputError
from potstill.models.encoder import load_encoder
from potstill.models.load import compute_dtype, device
from potstill.models.precision import precision
from potstill.recipe import Recipe
from potstill.recipe.student import Encoder
from potstill.store.run import RunFolder

Answer = Callable[[str], str]
"""What the student says to a prompt of one user turn."""


def answerer(folder: RunFolder, recipe: Recipe) -> Answer:
    """The student of a run, loaded. Raises InputError where there is none yet."""
    if not (folder.model / "config.json").is_file():
        raise InputError(f"there is no student in '{folder.path}' yet", way_out="potstill train first")
    with precision(recipe.train.precision):
        return _chooser(folder.model) if isinstance(recipe.student, Encoder) else _writer(folder.model)


def _writer(folder: Path) -> Answer:
    """A language model writes, through its own chat template and generation config."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=compute_dtype(), local_files_only=True)
    model = loaded.to(device()).eval()  # pyright: ignore[reportArgumentType]

    @torch.inference_mode()
    def answer(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        asked = asked.to(model.device)
        written = model.generate(**asked)[0, asked["input_ids"].shape[1] :]  # pyright: ignore[reportAttributeAccessIssue]
        return tokenizer.decode(written, skip_special_tokens=True).strip()

    return answer


def _chooser(folder: Path) -> Answer:
    """An encoder chooses, and says how sure it is."""
    classifier = load_encoder(folder)
    labels = [str(label) for label in (classifier.model.config.id2label or {}).values()]

    @torch.inference_mode()
    def answer(text: str) -> str:
        inputs = {name: value.to(classifier.model.device) for name, value in classifier.encode([text]).items()}
        p_C = torch.softmax(classifier.model(**inputs).logits[0].float(), dim=-1)
        best = int(p_C.argmax())
        return f"{labels[best]} ({float(p_C[best]):.1%})"

    return answer
