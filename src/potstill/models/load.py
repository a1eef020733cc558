"""Load a model and its tokenizer from wherever `locate` found it.

A GGUF file is turned into a model folder once (transformers needs half a minute for it) and kept in the cache under the
hash of its bytes, so a second start takes a second.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from potstill.errors import InputError
from potstill.models.config import require_weights_as_numbers
from potstill.models.forward import require_head
from potstill.models.gguf import read_header
from potstill.models.identity import file_hash, fingerprint
from potstill.models.locate import Located, cache_folder, read_json, rows_of
from potstill.models.precision import resolved
from potstill.models.templates import from_hub, template_of
from potstill.models.text_model import text_model
from potstill.text.tokens import Codec, load_tokenizer

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode, with the folder it came from and a fingerprint of its bytes."""

    model: PreTrainedModel
    folder: Path
    fingerprint: str


def compute_dtype() -> torch.dtype:
    """What the stage that runs computes in."""
    return torch.bfloat16 if resolved() == "bf16" else torch.float32


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    located: Located,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    on: torch.device | None = None,
) -> Loaded:
    """Weights and tokenizer folder, on the device that computes or another. No remote code is ever run and no pickle is
    ever read. Raises InputError for a model whose logits are not its head's product alone."""
    folder = folder_of(located, revision=revision)
    config = read_json(folder / "config.json")
    require_weights_as_numbers(config, name=located.name)
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or compute_dtype(),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **_made_plain(config),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(
            f"'{located.name}' cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            way_out="give a causal language model that transformers knows",
        ) from error
    model, found = read
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"'{located.name}' lacks {len(missing)} weights of a {type(model).__name__}, such as '{missing[0]}'",
            way_out="give the folder of a causal language model with all of its weights",
        )
    model = text_model(model, name=located.name)
    model = model.to(on or device()).eval()  # pyright: ignore[reportArgumentType]
    require_head(model, located.name)
    return Loaded(model, folder, fingerprint(folder))


def _made_plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """What has transformers turn quantised weights into plain ones while it reads them."""
    match (config.get("quantization_config") or {}).get("quant_method"):
        case "fp8":
            return {"quantization_config": FineGrainedFP8Config(dequantize=True)}
        case "mxfp4":
            return {"quantization_config": Mxfp4Config(dequantize=True)}
        case _:
            return {}


def folder_of(located: Located, *, revision: str | None = None) -> Path:
    """A model folder: the folder itself, the hub snapshot, or the converted GGUF."""
    match located.form:
        case "folder":
            assert located.path is not None
            return located.path
        case "hub":
            return from_hub(located.name, revision, ["*.json", "*.safetensors", "*.jinja", "tokenizer*"])
        case "gguf":
            assert located.path is not None
            return _converted(located.path)


def _converted(path: Path) -> Path:
    read_header(path)
    target = cache_folder() / "gguf" / file_hash(path)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=".draft-"))
    try:
        _convert(path, draft)
        if not target.is_dir():  # another process may have been faster
            draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _convert(path: Path, folder: Path) -> None:
    try:
        with redirect_stderr(StringIO()):  # its progress bars cannot be switched off otherwise
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"'{path}' cannot be loaded: {str(error).splitlines()[0]}",
            way_out="give the GGUF file of an architecture that transformers reads",
        ) from error
    # transformers marks the dequantised weights as quantised and would refuse to save them.
    del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model.hf_quantizer = None  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def codec_of(folder: Path, replacement: str | None, *, name: str) -> Codec:
    """The folder's tokenizer with the recipe's template, or the one that the model carries."""
    return Codec(load_tokenizer(folder), template_of(folder, replacement, name=name), rows=rows_of(folder))
