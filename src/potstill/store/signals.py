"""The signals cache: what a teacher said of every example's tokens, computed once and shared between runs.

cache.json               what the signals depend on        head.safetensors   of hidden states, once
shard-*.safetensors      rows of many examples, sealed     .lock              held by the one writer

Dimension key: N rows (tokens that bear loss), D teacher width, V vocabulary, K stored candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from potstill.errors import DiskError, InputError
from potstill.signals import Hidden, Sampled, TopK
from potstill.store.files import write_atomic
from potstill.store.packing import (
    Form,
    HiddenForm,
    Packable,
    SampledForm,
    TopKForm,
    fault,
    pack,
    sampled_slice,
    unpack_hidden,
    unpack_sampled,
    unpack_top_k,
)
from potstill.store.sealed import Damaged, check_seal, open_sealed, write_sealed
from potstill.store.shards import Shard, Shards

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a signal depends on besides the tokens and the form. `temperature` is that of top-k and draws; hidden states
    fit any, theirs is 1."""

    teacher: str
    revision: str
    tokenizer: str
    template: str
    vocabulary: int
    dtype: str
    temperature: float = 1.0


def key_of(prefix: Sequence[int], target: Sequence[int]) -> bytes:
    """The 16 bytes under which an example's signals are kept: a hash of its ids and of where the answer begins."""
    ids = np.array([len(prefix), *prefix, *target], dtype="<u4")
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


class SignalsCache:
    """Open with `with SignalsCache.open(...) as cache`. Reading takes no lock, the first `append_all` does."""

    def __init__(self, folder: Path, identity: Identity, form: Form, shard_tokens: int) -> None:
        self._folder, self._identity, self._form, self._shard_tokens = folder, identity, form, shard_tokens
        self._shards = Shards(folder, hashlib.sha256(_description(identity, form).encode()).hexdigest())
        self._lock = FileLock(folder / ".lock")
        self._pending: dict[bytes, Packable] = {}
        self._pending_rows = 0
        self._head: Hidden | None = None

    @classmethod
    def open(cls, folder: Path, identity: Identity, form: Form, *, shard_tokens: int = 32_768) -> SignalsCache:
        """Open or create the folder. Raises InputError where it holds signals of something else."""
        folder.mkdir(parents=True, exist_ok=True)
        described = _description(identity, form)
        if not (folder / "cache.json").is_file():
            with FileLock(folder / ".lock"):
                if not (folder / "cache.json").is_file():
                    write_atomic(folder / "cache.json", described)
        _check_same(folder, described)
        cache = cls(folder, identity, form, shard_tokens)
        cache._shards.refresh()
        return cache

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The int8 scales depend on where a shard ends: an interrupted run leaves only what an unbroken one would.
        if error is None or not isinstance(self._form, HiddenForm):
            self.flush()
        self._lock.release()

    @property
    def damage(self) -> tuple[str, ...]:
        """One sentence for each damaged file that was come across."""
        return tuple(self._shards.damage)

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those still to compute, once each, in order. Reads every shard that has one of the others to its end: what
        is damaged is found here, while a teacher can still be asked, and its examples are missing."""
        self._shards.refresh()
        found = zip(keys, self._shards.find(keys), strict=True)
        asked = [key for key, place in found if place is None and key not in self._pending]
        if not asked and keys and isinstance(self._form, HiddenForm) and self._load_head() is None:
            return [keys[0]]  # any example brings the head back
        return list(dict.fromkeys(asked))

    def append_all(self, signals: Sequence[tuple[bytes, Packable]]) -> None:
        """Keep examples' signals; written when about `shard_tokens` rows are together. Those given at once share a
        shard: a run that goes on after a kill then finds whole batches missing and computes them as they were, since
        in a batch of another shape a signal differs in its last bit. Raises InputError where one does not fit the
        cache, or where another process is writing to it."""
        self._write_alone()
        kept: dict[bytes, Packable] = {}
        for key, signal in signals:
            self._check(signal)
            if isinstance(signal, Hidden):
                self._keep_head(signal)
            if key not in self._pending:
                kept[key] = _on_cpu(signal)
        self._pending |= kept
        self._pending_rows += sum(_rows(signal) for signal in kept.values())
        if self._pending_rows >= self._shard_tokens:
            self.flush()

    def _check(self, signal: Packable) -> None:
        wrong = fault(self._form, signal, self._identity.vocabulary)
        if not isinstance(signal, Hidden) and signal.temperature != self._identity.temperature:
            wrong = f"was taken at temperature {signal.temperature}, the cache's is {self._identity.temperature}"
        if wrong:
            raise InputError(
                f"the signal of an example for '{self._folder}' {wrong}",
                way_out="see that the teacher and the recipe's method are those of the cache",
            )

    def flush(self) -> None:
        """Write what is together, as a shard of its own."""
        if not self._pending:
            return
        parts = list(self._pending.values())
        columns = pack(self._form, _joined(parts), self._identity.vocabulary)
        columns["key"] = np.frombuffer(b"".join(self._pending), dtype=np.uint8).reshape(-1, 16)
        columns["rows"] = np.array([_rows(part) for part in parts], dtype=np.uint32)
        tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
        write_sealed(self._shards.next_path(), tensors, {"cache": self._shards.stamp, "format": _FORMAT})
        self._pending, self._pending_rows = {}, 0
        self._shards.sweep()
        self._shards.refresh()

    def read(self, keys: Sequence[bytes], *, device: torch.device | str = "cpu") -> Packable:
        """The examples' signals, one after the other in this order. Raises InputError where one was never computed, and
        DiskError where its shard was found to be damaged."""
        places = [place for place in self._shards.find(keys) if place is not None]
        if len(places) < len(keys):
            self._shards.refresh()
            places = [place for place in self._shards.find(keys) if place is not None]
        if lost := len(keys) - len(places):
            self._refuse(lost, len(keys))
        match self._form:
            case TopKForm(k):
                joined = _gathered([_slice(shard, e) for shard, e in places])
                top = unpack_top_k(joined, k, self._identity.vocabulary, self._identity.temperature)
                lse_N = None if top.lse_N is None else top.lse_N.to(device)
                return TopK(top.ids_NK.to(device), top.logp_NK.to(device), lse_N, top.temperature)
            case SampledForm(draws):
                joined = _gathered([_drawn_slice(shard, e, self._identity.vocabulary) for shard, e in places])
                drawn = unpack_sampled(joined, draws, self._identity.temperature)
                return Sampled(drawn.ids_NK.to(device), drawn.counts_NK.to(device), drawn.temperature)
            case HiddenForm() as form:
                hidden_ND = torch.cat([unpack_hidden(shard.columns, _span(shard, e), form) for shard, e in places])
                return self._with_head(hidden_ND, torch.device(device))

    def _refuse(self, lost: int, asked: int) -> None:
        if self._shards.damage:
            raise DiskError(self._shards.damage[-1], way_out="run the same command again: only those are computed")
        raise InputError(
            f"'{self._folder}' has no signals of {lost} of {asked} examples",
            way_out="compute what `missing` says first",
        )

    def _write_alone(self) -> None:
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another potstill process is writing signals to '{self._folder}'",
                way_out="wait for it and run the same command again: what it wrote is used",
            ) from None
        self._shards.refresh()

    # the head of hidden states

    def _keep_head(self, signal: Hidden) -> None:
        if self._load_head() is not None:
            return
        tensors = {"head": signal.head_VD.detach().cpu().contiguous()}
        if signal.bias_V is not None:
            tensors["bias"] = signal.bias_V.detach().cpu().contiguous()
        about = {"cache": self._shards.stamp, "logit_scale": signal.logit_scale, "softcap": signal.softcap}
        write_sealed(self._folder / "head.safetensors", tensors, about)

    def _load_head(self) -> Hidden | None:
        """The head with no rows; None where there is none or it is damaged."""
        path = self._folder / "head.safetensors"
        if self._head is None and path.is_file():
            try:
                check_seal(path)
                about, _ = open_sealed(path)
                if about["cache"] != self._shards.stamp:
                    raise Damaged("it belongs to another cache")
            except Damaged as wrong:
                self._shards.damage.append(f"'{path}' is damaged: {wrong}; one example brings it back")
                return None
            found = load_file(path)
            empty_ND = found["head"].new_zeros((0, found["head"].shape[1]))
            self._head = Hidden(empty_ND, found["head"], found.get("bias"), about["logit_scale"], about["softcap"])
        return self._head

    def _with_head(self, hidden_ND: Tensor, device: torch.device) -> Hidden:
        """In the head's dtype, as losses want them; the head is moved to a device once."""
        head = self._load_head()
        if head is None:
            raise DiskError(
                f"'{self._folder / 'head.safetensors'}' is missing or damaged",
                way_out="run the same command again: one example brings it back",
            )
        if head.head_VD.device != device:
            bias_V = None if head.bias_V is None else head.bias_V.to(device)
            self._head = head = replace(head, head_VD=head.head_VD.to(device), bias_V=bias_V)
        return replace(head, hidden_ND=hidden_ND.to(device=device, dtype=head.head_VD.dtype))


def _description(identity: Identity, form: Form) -> str:
    return json.dumps({"format": _FORMAT, **asdict(identity), "form": type(form).__name__, **_settings(form)}, indent=1)


def _settings(form: Form) -> dict[str, Any]:
    return {"hidden": form.dtype} if isinstance(form, HiddenForm) else asdict(form)


def _check_same(folder: Path, described: str) -> None:
    stored_text = (folder / "cache.json").read_text(encoding="utf-8", errors="replace")
    way_out = "give these signals another folder, or delete this one"
    if stored_text == described:
        return
    try:
        stored = cast("dict[str, Any]", json.loads(stored_text))
    except ValueError as error:
        raise InputError(f"'{folder / 'cache.json'}' is damaged ({error})", way_out=way_out) from None
    wanted = json.loads(described)
    for name in [*wanted, *stored]:
        here, there = stored.get(name, "missing"), wanted.get(name, "missing")
        if here != there:
            raise InputError(
                f"'{folder}' holds other signals: {name} is {here!r} there, but {there!r} here", way_out=way_out
            )
    raise InputError(f"'{folder / 'cache.json'}' is not as it was written", way_out=way_out)


def _rows(signal: Packable) -> int:
    return len(signal.hidden_ND) if isinstance(signal, Hidden) else len(signal.ids_NK)


def _on_cpu(signal: Packable) -> Packable:
    """A copy without a head: whoever made the signal may use its memory again."""
    match signal:
        case TopK(ids_NK, logp_NK, lse_N):
            lse_N = None if lse_N is None else lse_N.detach().cpu().clone()
            return TopK(ids_NK.to("cpu", torch.int32, copy=True), logp_NK.detach().cpu().float().clone(), lse_N)
        case Sampled(ids_NK, counts_NK):
            return Sampled(ids_NK.to("cpu", torch.int32, copy=True), counts_NK.to("cpu", torch.int32, copy=True))
        case Hidden(hidden_ND):
            return Hidden(hidden_ND.detach().cpu().clone(), hidden_ND.new_zeros(0))


def _joined(parts: Sequence[Packable]) -> Packable:
    first = parts[0]
    if isinstance(first, Hidden):
        return Hidden(torch.cat([p.hidden_ND for p in parts if isinstance(p, Hidden)]), first.head_VD)
    if isinstance(first, TopK):
        tops = [p for p in parts if isinstance(p, TopK)]
        lse = [p.lse_N for p in tops if p.lse_N is not None]
        ids_NK, logp_NK = torch.cat([p.ids_NK for p in tops]), torch.cat([p.logp_NK for p in tops])
        return TopK(ids_NK, logp_NK, torch.cat(lse) if len(lse) == len(tops) else None)
    drawn = [p for p in parts if isinstance(p, Sampled)]
    k = max(p.ids_NK.shape[1] for p in drawn)
    wide = [(0, k - p.ids_NK.shape[1]) for p in drawn]
    ids = [torch.nn.functional.pad(p.ids_NK, pad) for p, pad in zip(drawn, wide, strict=True)]
    counts = [torch.nn.functional.pad(p.counts_NK, pad) for p, pad in zip(drawn, wide, strict=True)]
    return Sampled(torch.cat(ids), torch.cat(counts))


def _span(shard: Shard, example: int) -> slice:
    first = int(shard.first_E[example])
    return slice(first, first + int(shard.rows_E[example]))


def _slice(shard: Shard, example: int) -> dict[str, NDArray[Any]]:
    rows = _span(shard, example)
    return {name: column[rows] for name, column in shard.columns.items() if name not in ("key", "rows")}


def _drawn_slice(shard: Shard, example: int, vocabulary: int) -> dict[str, NDArray[Any]]:
    rows = _span(shard, example)
    assert shard.draws_before is not None
    ids = slice(int(shard.draws_before[rows.start]), int(shard.draws_before[rows.stop]))
    return sampled_slice(shard.columns, rows, ids, vocabulary)


def _gathered(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """A column that not every shard has (the log-sum-exp of a teacher that told it at times) is in none."""
    return {n: np.concatenate([part[n] for part in parts]) for n in parts[0] if all(n in part for part in parts)}
