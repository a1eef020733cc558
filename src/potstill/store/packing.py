"""A signal as columns of a shard and back: what each form keeps, in how many bytes.

Dimension key: N rows (tokens that bear loss), D teacher width, V vocabulary, K stored candidates, M drawn ids, B bytes
of a row, b bits of an integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.signals import Hidden, Sampled, TopK
from potstill.store.forms import LOGP_BITS, Form, HiddenForm, SampledForm, TopKForm, high_bits, high_slots, low_bits

Columns = Mapping[str, NDArray[Any]]

_ZERO = (1 << LOGP_BITS) - 1
"""The code of a probability of exactly 0."""
_STEPS = _ZERO - 1

Packable = TopK | Sampled | Hidden


def pack(form: Form, signal: Packable, vocabulary: int) -> dict[str, NDArray[Any]]:
    """The columns of a shard's rows. The signal was found by `fault` to fit the form."""
    match form, signal:
        case TopKForm(), TopK():
            return _pack_top_k(signal, vocabulary)
        case SampledForm(draws), Sampled():
            return _pack_sampled(signal, draws, vocabulary)
        case HiddenForm("int8"), Hidden():
            return _pack_int8(signal.hidden_ND.float().numpy())
        case HiddenForm("bf16"), Hidden():
            return {"hidden": signal.hidden_ND.bfloat16().view(torch.int16).numpy().view(np.uint16)}
        case _:
            raise AssertionError(f"{type(signal).__name__} for {form}")


def fault(form: Form, signal: Packable, vocabulary: int) -> str | None:
    """Why the signal cannot be stored in this form, as the end of "the signal ...", or None."""
    match form, signal:
        case TopKForm(k), TopK(ids_NK, logp_NK):
            if ids_NK.shape[1] != k:
                return f"has {ids_NK.shape[1]} candidates per token, the cache {k}"
            if not (logp_NK <= 1e-5).all() or not logp_NK.isfinite().any(-1).all():
                return "has a log-probability that is NaN or above 0, or a row of zeros"
            if (ids_NK.sort(-1).values.diff(dim=-1) == 0).any():
                return "names a token twice in one row"
            return _strange_id(ids_NK, vocabulary)
        case SampledForm(draws), Sampled(ids_NK, counts_NK):
            if (counts_NK < 0).any() or (counts_NK.sum(-1) != draws).any():
                return f"has a row whose counts are not {draws} draws together"
            return _strange_id(ids_NK[counts_NK > 0], vocabulary)
        case HiddenForm(), Hidden(hidden_ND):
            return None if hidden_ND.isfinite().all() else "has hidden states that are not finite"
        case _:
            return f"is a {type(signal).__name__}, the cache is for {form}"


def _strange_id(ids: Tensor, vocabulary: int) -> str | None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        return f"names the tokens {int(ids.min())} to {int(ids.max())} of a vocabulary of {vocabulary}"
    return None


# the most probable tokens


def _pack_top_k(signal: TopK, vocabulary: int) -> dict[str, NDArray[Any]]:
    """Ids in ascending order; the distance of each log-probability from the row's largest, in 4,094 steps. The level
    comes back from the tail's mass, which is kept apart: 1 - sum(p) of rounded numbers is not worth much."""
    order_NK = signal.ids_NK.argsort(-1)
    logp_NK = signal.logp_NK.gather(-1, order_NK).double().numpy()
    low, high = pack_ascending(signal.ids_NK.gather(-1, order_NK).numpy(), vocabulary)
    below_NK = logp_NK.max(1, keepdims=True) - logp_NK
    reach_N = np.where(np.isfinite(below_NK), below_NK, 0).max(1)
    step_N1 = _step(_above(reach_N))[:, None]
    codes_NK = np.where(np.isfinite(below_NK), np.rint(np.minimum(below_NK, reach_N[:, None]) / step_N1), _ZERO)
    with np.errstate(divide="ignore"):  # ln 0: no tail
        tail_N = np.log(np.maximum(1 - np.exp(logp_NK).sum(1), 0)).astype(np.float32)
    columns: dict[str, NDArray[Any]] = {
        "ids_low": low,
        "ids_high": high,
        "logp": pack_bits(codes_NK, LOGP_BITS),
        "reach": _above(reach_N),
        "tail": tail_N,
    }
    if signal.lse_N is not None:
        columns["lse"] = signal.lse_N.float().numpy()
    return columns


def _above(reach_N: NDArray[np.float64]) -> NDArray[np.float16]:
    """Rounded up to half precision."""
    rounded = reach_N.astype(np.float16)
    return np.where(rounded < reach_N, np.nextafter(rounded, np.float16(np.inf)), rounded).astype(np.float16)


def _step(reach_N: NDArray[np.float16]) -> NDArray[np.float64]:
    return np.where(reach_N > 0, reach_N.astype(np.float64) / _STEPS, 1)


def unpack_top_k(columns: Columns, k: int, vocabulary: int, temperature: float) -> TopK:
    codes_NK = unpack_bits(columns["logp"], LOGP_BITS, k)
    below_NK = np.where(codes_NK == _ZERO, np.inf, codes_NK * _step(columns["reach"])[:, None])
    mass_N = -np.expm1(columns["tail"].astype(np.float64))
    level_N = np.log(mass_N / np.exp(-below_NK).sum(1))
    return TopK(
        torch.from_numpy(unpack_ascending(columns["ids_low"], columns["ids_high"], k, vocabulary)),
        torch.from_numpy((level_N[:, None] - below_NK).astype(np.float32)),
        torch.from_numpy(columns["lse"]) if "lse" in columns else None,
        temperature,
    )


# drawn tokens


def _pack_sampled(signal: Sampled, draws: int, vocabulary: int) -> dict[str, NDArray[Any]]:
    """A row's draws lie in runs of equal ids; a bit is set at the last draw of each. So `draws` bits per row say both
    how many ids it has and how often each came up."""
    counts_NK = signal.counts_NK.long().numpy()
    drawn_NK = counts_NK > 0
    marks = np.zeros(len(counts_NK) * draws, dtype=np.uint8)
    marks[counts_NK[drawn_NK].cumsum() - 1] = 1
    ids_M = signal.ids_NK.long().numpy()[drawn_NK]
    columns: dict[str, NDArray[Any]] = {
        "runs": np.packbits(marks.reshape(-1, draws), axis=1, bitorder="little"),
        "ids": (ids_M & 0xFFFF).astype(np.uint16),
    }
    if bits := high_bits(vocabulary):
        columns["ids_high"] = pack_bits((ids_M >> 16)[None, :], bits)[0]
    return columns


def sampled_slice(columns: Columns, rows: slice, ids: slice, vocabulary: int) -> dict[str, NDArray[Any]]:
    """The columns of some rows, whose ids are those of `ids`, which are whole from here on."""
    ids_M = columns["ids"][ids].astype(np.int64)
    if bits := high_bits(vocabulary):
        first = ids.start * bits
        cut = columns["ids_high"][first // 8 : -(-ids.stop * bits // 8)]
        flat = np.unpackbits(cut, bitorder="little")[first % 8 :][: len(ids_M) * bits].reshape(-1, bits)
        ids_M |= (flat.astype(np.int64) << np.arange(16, 16 + bits)).sum(1)
    return {"runs": columns["runs"][rows], "ids": ids_M}


def unpack_sampled(columns: Columns, draws: int, temperature: float) -> Sampled:
    """K is the most distinct ids of a row; shorter rows are padded with counts of 0."""
    marks = np.unpackbits(columns["runs"], axis=1, count=draws, bitorder="little").view(bool)
    ends_M, distinct_N = np.flatnonzero(marks), np.count_nonzero(marks, axis=1)
    k = int(distinct_N.max(initial=1))
    # Where each id lies in the (N, K) table: rows begin at multiples of K, and its place in its row.
    at_M = np.arange(len(ends_M)) + np.repeat(
        np.arange(len(marks)) * k - (distinct_N.cumsum() - distinct_N), distinct_N
    )
    ids_NK, counts_NK = np.zeros((2, len(marks), k), dtype=np.int64)
    ids_NK.reshape(-1)[at_M] = columns["ids"]
    counts_NK.reshape(-1)[at_M] = np.diff(ends_M, prepend=-1)
    return Sampled(torch.from_numpy(ids_NK), torch.from_numpy(counts_NK), temperature)


# hidden states


def _pack_int8(hidden_ND: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Every channel is centred and scaled by its spread in the shard; then each row has the step that it needs. A
    step for a whole channel would be that of the shard's wildest token: twice the KL."""
    mean_D = hidden_ND.mean(0)
    spread_D = np.maximum(hidden_ND.std(0), np.finfo(np.float32).tiny)
    unit_ND = (hidden_ND - mean_D) / spread_D
    scale_N = np.maximum(np.abs(unit_ND).max(1) / 127, np.finfo(np.float32).tiny)
    codes_ND = np.rint(unit_ND / scale_N[:, None]).clip(-127, 127).astype(np.int8)
    return {"hidden": codes_ND, "scale": scale_N, "mean": mean_D, "spread": spread_D}


def unpack_hidden(columns: Columns, rows: slice, form: HiddenForm) -> Tensor:
    if form.dtype == "bf16":
        return torch.from_numpy(columns["hidden"][rows].view(np.int16).copy()).view(torch.bfloat16)
    unit_ND = columns["hidden"][rows].astype(np.float32) * columns["scale"][rows][:, None]
    return torch.from_numpy(unit_ND * columns["spread"] + columns["mean"])


# integers of any width in bits, row by row; every row fills whole bytes, so rows can be sliced


def pack_bits(values_NK: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Shape (N, B): the lowest `bits` bits of every value, 0 to 32 of them."""
    count, k = values_NK.shape
    little_NK4 = np.ascontiguousarray(values_NK, dtype="<u4").view(np.uint8).reshape(count, k, 4)
    each_NKb = np.unpackbits(little_NK4, axis=2, count=bits, bitorder="little") if bits else little_NK4[:, :, :0]
    return np.packbits(each_NKb.reshape(count, k * bits), axis=1, bitorder="little")


def unpack_bits(packed_NB: NDArray[np.uint8], bits: int, k: int) -> NDArray[Any]:
    """The inverse of `pack_bits`, shape (N, K)."""
    count = len(packed_NB)
    width = 16 if bits <= 16 else 32
    wide_NKw = np.zeros((count, k, width), dtype=np.uint8)
    if bits and k:
        flat = np.unpackbits(packed_NB, axis=1, count=k * bits, bitorder="little")
        wide_NKw[:, :, :bits] = flat.reshape(count, k, bits)
    packed = np.packbits(wide_NKw.reshape(-1), bitorder="little")
    return packed.view("<u2" if width == 16 else "<u4").reshape(count, k)


def pack_ascending(ids_NK: NDArray[Any], vocabulary: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The low and the high part of rows of distinct ids in ascending order (Elias 1974; Fano 1971): the low bits as
    they are, the high ones as a bitmap in which the i-th id sets the bit at high + i."""
    count, k = ids_NK.shape
    low = low_bits(k, vocabulary)
    marks = np.zeros((count, high_slots(k, vocabulary)), dtype=np.uint8)
    np.put_along_axis(marks, (ids_NK >> low) + np.arange(k), 1, axis=1)
    return pack_bits(ids_NK & ((1 << low) - 1), low), np.packbits(marks, axis=1, bitorder="little")


def unpack_ascending(low_NB: NDArray[np.uint8], high_NB: NDArray[np.uint8], k: int, vocabulary: int) -> NDArray[Any]:
    """The inverse of `pack_ascending`: int64, shape (N, K)."""
    low, slots = low_bits(k, vocabulary), high_slots(k, vocabulary)
    marks = np.unpackbits(high_NB, axis=1, count=slots, bitorder="little")
    at_NK = np.flatnonzero(marks).reshape(len(marks), k) - np.arange(len(marks))[:, None] * slots
    return ((at_NK - np.arange(k)) << low) | unpack_bits(low_NB, low, k)
