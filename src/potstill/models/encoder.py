"""Encoder classifiers: `AutoModelForSequenceClassification` with the recipe's choices as its labels.

From a hub id or folder with that model's tokenizer, or of a given shape with random weights and a language model's
tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from potstill.errors import InputError
from potstill.models.load import device, folder_of
from potstill.models.locate import locate
from potstill.models.save import whole_folder
from potstill.recipe.student import Encoder, EncoderShape
from potstill.records import Message


@dataclass(frozen=True, slots=True)
class TextClassifier:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Its keyword arguments, padded on the right. Raises InputError on a text that is longer than it reads."""
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        lengths = [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]  # pyright: ignore[reportArgumentType]
        longest = max(range(len(texts)), key=lengths.__getitem__)
        if lengths[longest] > limit:
            raise InputError(
                f"the prompt {texts[longest][:60]!r}... has {lengths[longest]} tokens, but the encoder reads {limit}",
                way_out="shorten the prompts or start from an encoder that reads more",
            )
        return dict(self.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt"))

    def save(self, to: Path) -> None:
        """A folder that `from_pretrained` and `pipeline("text-classification")` load; whole or absent."""
        with whole_folder(to) as draft:
            self.tokenizer.save_pretrained(draft)
            self.model.save_pretrained(draft)


def asked_text(messages: Sequence[Message]) -> str:
    """What an encoder reads of a prompt: all its turns, in their order."""
    return "\n".join(message.content for message in messages)


def initial_encoder(encoder: Encoder, choices: Sequence[str], *, seed: int) -> TextClassifier:
    """The classifier before its first step, fp32. What is random of it is drawn by `seed` and leaves no trace."""
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(choices)),
        "label2id": {choice: i for i, choice in enumerate(choices)},
    }
    tokenizer = encoder_tokenizer(encoder)
    place = device()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"encoder/{seed}".encode()).digest()[:4]))
        if encoder.shape is not None:
            config = _config(encoder.shape, tokenizer, labels)
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            assert encoder.start is not None
            folder = folder_of(locate(encoder.start), revision=encoder.revision)
            model = _opened(folder, encoder.start, num_labels=len(choices), **labels).model
            if encoder.weights == "random":
                model = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    return TextClassifier(model.to(place).eval(), tokenizer)  # pyright: ignore[reportArgumentType]


def encoder_tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    """The start's own; for a shape that of a language model made fit for an encoder: it pads, and knows neither chats
    nor token types."""
    if encoder.start is not None:
        folder = folder_of(locate(encoder.start), revision=encoder.revision)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert encoder.tokenizer is not None
    tokenizer = AutoTokenizer.from_pretrained(folder_of(locate(encoder.tokenizer)), local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def load_encoder(folder: Path) -> TextClassifier:
    return _opened(folder, str(folder))


def _opened(folder: Path, name: str, **labels: Any) -> TextClassifier:
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **labels
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"the encoder '{name}' cannot be loaded: {str(error).splitlines()[0]}",
            way_out="give a model with a tokenizer that transformers knows as a sequence classifier",
        ) from error
    return TextClassifier(model.to(device()).eval(), tokenizer)


def _config(shape: EncoderShape, tokenizer: PreTrainedTokenizerBase, labels: dict[str, Any]) -> ModernBertConfig:
    """ModernBERT, read by the mean of its positions: a language model's tokenizer has no [CLS]."""
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        classifier_pooling="mean",
        classifier_dropout=shape.dropout,
        embedding_dropout=shape.dropout,
        mlp_dropout=shape.dropout,
        pad_token_id=int(tokenizer.convert_tokens_to_ids(str(tokenizer.pad_token))),  # pyright: ignore[reportArgumentType]
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        **labels,
    )
