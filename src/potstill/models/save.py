"""Write a model folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from potstill.models.lora import plain_weights
from potstill.text.tokens import Codec


def save_model(
    model: PreTrainedModel,
    codec: Codec,
    *,
    tokenizer_from: Path,
    end_of_turn: int,
    max_new_tokens: int,
    to: Path,
) -> None:
    """Weights, tokenizer, the codec's template as chat template, and a generation config that stops at `end_of_turn`.

    Written beside `to` and renamed, so `to` is whole or absent.
    """
    with whole_folder(to) as draft:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from, local_files_only=True)
        tokenizer.chat_template = codec.template.saved
        tokenizer.save_pretrained(draft)
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            bos_token_id=model.config.bos_token_id,
            eos_token_id=end_of_turn,
            pad_token_id=end_of_turn if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        model.config.eos_token_id = end_of_turn
        save_weights(model, draft)


def save_weights(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Weights, of adapters too what they add, with their configuration and no tokenizer: what a server of the folder
    reads again."""
    weights = plain_weights(model)
    if dtype is not None:
        weights = {name: value.to(dtype) for name, value in weights.items()}
    model.save_pretrained(folder, state_dict=weights)


@contextmanager
def whole_folder(to: Path) -> Generator[Path]:
    """A folder to fill; at the end it is renamed to `to`, in place of what is there. After an error nothing is
    left, and what a killed process left is removed: only one process at a time may write `to`.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    for left in to.parent.glob(f".{to.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    try:
        yield draft
        draft.chmod(0o755)  # a temporary folder is private, a model is not
        if to.exists():
            shutil.rmtree(to)
        draft.replace(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
