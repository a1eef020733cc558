"""Sequences of different length in one row, without padding: every linear layer sees only real tokens, and attention
keeps each document to itself.

On a CPU attention runs over small groups of documents of similar length; on CUDA the model's own implementation
(FlashAttention or flex attention through transformers) is told where documents begin by their positions.

Dimension key: S documents, T tokens of all of them, B documents of a group, L its longest, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from potstill.errors import InputError
from potstill.models.selftest import Sample, difference, fault_of
from potstill.text.tokens import Ids

_NAME = "potstill_documents"
_WITHOUT_EFFECT = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}
_PADDING = 1.25  # a group's padded size over its tokens at which it is closed


@dataclass(frozen=True)
class Documents:
    """`ids_T` are the documents one after the other, shortest first; `start_S` is where each of those given begins."""

    ids_T: Tensor
    position_T: Tensor
    start_S: tuple[int, ...]
    lengths: tuple[int, ...]
    """Of the documents as they lie in `ids_T`: ascending."""

    @staticmethod
    def of(sequences: Sequence[Ids], device: torch.device) -> Documents:
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        starts, ids, positions = [0] * len(sequences), list[int](), list[int]()
        for i in order:
            starts[i] = len(ids)
            ids += sequences[i]
            positions += range(len(sequences[i]))
        return Documents(
            ids_T=torch.tensor(ids, device=device),
            position_T=torch.tensor(positions, device=device),
            start_S=tuple(starts),
            lengths=tuple(len(sequences[i]) for i in order),
        )

    @property
    def device(self) -> torch.device:
        return self.ids_T.device

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Neighbours of similar length that are attended to together."""
        groups: list[Group] = []
        begin = 0
        for some in alike(self.lengths):
            lengths = [self.lengths[i] for i in some]
            groups.append(Group.of(begin, lengths, self.device))
            begin += sum(lengths)
        return tuple(groups)


def alike(lengths: Sequence[int], most: int | None = None) -> list[list[int]]:
    """Positions in groups of similar length, shortest first: padded to its longest, no group is much larger than its
    tokens, nor than `most`, unless it is one alone."""
    groups: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padded = (len(groups[-1]) + 1) * lengths[i] if groups else 0
        if not groups or padded > _PADDING * (tokens + lengths[i]) or padded > (most or padded):
            groups.append([])
            tokens = 0
        groups[-1].append(i)
        tokens += lengths[i]
    return groups


@dataclass(frozen=True)
class Group:
    """The tokens `begin` to `end`, as (size, longest) once padded on the right. `padded_X` says which token stands in
    each place and `real_X` which places hold one; both are None where all are equally long."""

    begin: int
    end: int
    size: int
    longest: int
    padded_X: Tensor | None
    real_X: Tensor | None

    @staticmethod
    def of(begin: int, lengths: Sequence[int], device: torch.device) -> Group:
        total, size, longest = sum(lengths), len(lengths), lengths[-1]
        if total == size * longest:
            return Group(begin, begin + total, size, longest, None, None)
        length_S1 = torch.tensor(lengths, device=device).unsqueeze(1)
        start_S1 = length_S1.cumsum(0) - length_S1
        place_L = torch.arange(longest, device=device)
        padded_X = (start_S1 + place_L.clamp(max=length_S1 - 1)).flatten()
        real_X = (place_L < length_S1).flatten().nonzero().squeeze(1)
        return Group(begin, begin + total, size, longest, padded_X, real_X)

    def take(self, x_HTE: Tensor) -> Tensor:
        """(B, H, L, E) out of (H, T, E)."""
        part = x_HTE[:, self.begin : self.end]
        if self.padded_X is not None:
            part = part.index_select(1, self.padded_X)
        return part.unflatten(1, (self.size, self.longest)).transpose(0, 1)

    def give(self, x_BHLE: Tensor) -> Tensor:
        """(tokens, H, E), the padding left out."""
        x_XHE = x_BHLE.transpose(1, 2).flatten(0, 1)
        return x_XHE if self.real_X is None else x_XHE.index_select(0, self.real_X)


def packs(model: PreTrainedModel) -> bool:
    """Whether attention is what `_attend` computes: softmax over all or the last so many tokens, and nothing more."""
    return packed_fault(model) is None


def packed_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why not; None: it is."""
    return fault_of(model, "packed rows", lambda sample: _off(sample, _packed))


def padded_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why rows that are padded on the right, without a mask, do not give what each gives alone; None: they do."""
    return fault_of(model, "padded rows", lambda sample: _off(sample, _padded))


def require_padded(model: PreTrainedModel) -> None:
    """Raises InputError where padded rows are not right."""
    if (fault := padded_fault(model)) is not None:
        raise InputError(
            f"{type(model).__name__} cannot be computed in batches: rows padded on the right are not what each is "
            f"alone ({fault})",
            way_out="take a model of another architecture",
        )


def _off(sample: Sample, path: Callable[[PreTrainedModel, Documents], Tensor]) -> str | None:
    documents = Documents.of(sample.texts, torch.device("cpu"))
    with torch.no_grad():
        made_TD = path(sample.model, documents)
    for start, wanted_LD in zip(documents.start_S, sample.hidden, strict=True):
        if fault := difference(made_TD[start : start + len(wanted_LD)], wanted_LD):
            return fault
    return None


def last_hidden(model: PreTrainedModel, documents: Documents) -> Tensor:
    """Last hidden states, final norm applied, of every token: (T, D), in the documents' order. Raises InputError for an
    architecture that is not computed in batches."""
    if packs(model):
        return _packed(model, documents)
    require_padded(model)
    return _padded(model, documents)


def _packed(model: PreTrainedModel, documents: Documents) -> Tensor:
    with _attention(model, _NAME):
        made = model.base_model(
            input_ids=documents.ids_T.unsqueeze(0),
            position_ids=documents.position_T.unsqueeze(0),
            use_cache=False,
            documents=documents,
        )
    return made.last_hidden_state.squeeze(0)


def _padded(model: PreTrainedModel, documents: Documents) -> Tensor:
    """For architectures with attention of their own. Padding is on the right, where no token sees it."""
    lengths = documents.lengths
    rows = documents.ids_T.split(lengths)
    ids_SL = torch.stack([pad(row, (0, lengths[-1] - len(row))) for row in rows])
    hidden_SLD = model.base_model(input_ids=ids_SL, use_cache=False).last_hidden_state
    return torch.cat([hidden_SLD[s, :length] for s, length in enumerate(lengths)])


def attention_as_now(model: PreTrainedModel) -> AbstractContextManager[None]:
    """To be entered later: the model attends as it does when this is called."""
    config: Any = model.config
    return _attention(model, config._attn_implementation)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Generator[None]:
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(  # noqa: PLR0913
    module: Any,
    query_1HTE: Tensor,
    key_1HTE: Tensor,
    value_1HTE: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """Causal attention within every document, (1, T, H, E); called by transformers for every layer. Raises InputError
    for an argument that is not understood."""
    unknown = [name for name, value in more.items() if value is not None and name not in _WITHOUT_EFFECT]
    if attention_mask is not None or unknown:
        raise InputError(
            f"{type(module).__name__} is no plain attention: it is given {unknown or ['a mask of its own']}",
            way_out="take a model of another architecture",
        )
    grouped = query_1HTE.shape[1] != key_1HTE.shape[1]
    made: list[Tensor] = []
    for group in documents.groups:
        q_BHLE, k_BHLE, v_BHLE = (group.take(x.squeeze(0)) for x in (query_1HTE, key_1HTE, value_1HTE))
        window_LL = _window(group.longest, sliding_window, query_1HTE.device)
        made.append(
            group.give(
                scaled_dot_product_attention(
                    q_BHLE,
                    k_BHLE,
                    v_BHLE,
                    attn_mask=window_LL,
                    is_causal=window_LL is None,
                    dropout_p=dropout,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        )
    return torch.cat(made).unsqueeze(0), None


def _window(longest: int, size: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees where a document is longer than a sliding window."""
    if size is None or longest <= size:
        return None
    place_L = torch.arange(longest, device=device)
    back_LL = place_L.unsqueeze(1) - place_L
    return (back_LL >= 0) & (back_LL < size)


AttentionInterface.register(_NAME, _attend)
