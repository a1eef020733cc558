"""Tensors that lie in parts on several processes: each writes its own parts as safetensors, and any number of processes
reads them back (`torch.distributed.checkpoint` in its safetensors format; its own one is a pickle)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """All processes together; back where the last of them has written."""
    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        _raise_cause(error)


def read_parts(folder: Path, *, into: Mapping[str, Tensor]) -> None:
    """Each process its parts of `into`, in place; of whole tensors too."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that one process reads is meant
            load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        _raise_cause(error)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors, put together again, in one process."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    read_parts(folder, into=tensors)
    return tensors


def _raise_cause(error: CheckpointException) -> NoReturn:
    """What went wrong in one of the processes, such as a full disk: theirs is a BaseException that nobody expects."""
    cause, _ = next(iter(error.failures.values()))
    raise cause from error
