"""A sequence classifier in this process that says how good answers are.

Dimension key: B conversations in a batch, L tokens, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from potstill.engines.local import plan_batches
from potstill.errors import InputError
from potstill.models.load import codec_of, compute_dtype, device, folder_of
from potstill.models.locate import Located, classifier_labels, locate, require_label
from potstill.recipe.checks import RewardModel
from potstill.records import Message
from potstill.text.tokens import Ids


class RewardScorer:
    """fp32 on a CPU: in bf16 a reward moves with what it is batched with. Raises InputError or MissingEnvironment."""

    def __init__(self, check: RewardModel) -> None:
        folder = folder_of(locate(check.model), revision=check.revision)
        labels = classifier_labels(Located(check.model, "folder", folder)) or ()
        require_label(labels, check.label, model=check.model)
        self._label = None if check.label is None else labels.index(check.label)
        self._codec = codec_of(folder, check.template, name="reward model's")
        self._size = check.batch_size
        dtype = torch.float32 if device().type == "cpu" else compute_dtype()
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"'{check.model}' cannot be loaded: {str(error).splitlines()[0]}",
                way_out="give a sequence classifier that transformers knows",
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise InputError(f"'{check.model}' lacks weights: {missing[0]}", way_out="give a trained reward model")
        self._model = model.to(device()).eval()
        self._pad = self._model.config.pad_token_id
        self._reads = int(getattr(self._model.config, "max_position_embeddings", 1 << 30))

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | str]:
        """The reward of each, or its label's probability; a text where there is none, saying why."""
        found: list[float | str] = [""] * len(conversations)
        asked: dict[int, Ids] = {}
        for i, messages in enumerate(conversations):
            try:
                ids = self._codec.conversation(messages)
            except InputError as why:
                found[i] = why.problem
                continue
            if len(ids) > self._reads:
                found[i] = f"it is longer than the {self._reads:,} tokens that the reward model reads"
            else:
                asked[i] = ids
        places = list(asked)
        # without a padding token of its own, the model cannot tell where a padded text ends
        size = 1 if self._pad is None else self._size
        ordered = plan_batches([len(asked[i]) for i in places], 1 << 62)
        for batch in (b[at : at + size] for b in ordered for at in range(0, len(b), size)):
            chosen = [places[j] for j in batch]
            for i, value in zip(chosen, self._values([asked[i] for i in chosen]), strict=True):
                found[i] = value
        return found

    @torch.inference_mode()
    def _values(self, rows: Sequence[Ids]) -> list[float]:
        longest = max(map(len, rows))
        padded = [[*ids, *[self._pad or 0] * (longest - len(ids))] for ids in rows]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows]
        where = self._model.device
        logits_BC: Tensor = self._model(
            input_ids=torch.tensor(padded, device=where), attention_mask=torch.tensor(mask, device=where)
        ).logits.float()
        value_B = logits_BC[:, 0] if self._label is None else logits_BC.softmax(dim=-1)[:, self._label]
        return value_B.tolist()
