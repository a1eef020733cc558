"""Load a model and its tokenizer from wherever `locate` found it.

A GGUF file is turned into a model folder once (transformers needs half a minute for it) and kept in the cache under the
hash of its bytes, so a second start takes a second.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from potstill.errors import InputError, MissingEnvironment
from potstill.models.gguf import read_header
from potstill.models.locate import Located, cache_folder, read_json
from potstill.text.template import Template
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
    """bf16 where the hardware multiplies it natively, else fp32 (emulated bf16 is several times slower)."""
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    capabilities = torch.backends.cpu.get_cpu_capability()
    native = "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if native else torch.float32


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
    ever read."""
    folder = folder_of(located, revision=revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or compute_dtype(), use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"'{located.name}' cannot be loaded: {str(error).splitlines()[0]}",
            way_out="give a causal language model that transformers knows",
        ) from error
    return Loaded(model.to(on or device()).eval(), folder, fingerprint(folder))  # pyright: ignore[reportArgumentType]


def folder_of(located: Located, *, revision: str | None = None) -> Path:
    """A model folder: the folder itself, the hub snapshot, or the converted GGUF."""
    match located.form:
        case "folder":
            assert located.path is not None
            return located.path
        case "hub":
            return _from_hub(located.name, revision, ["*.json", "*.safetensors", "*.jinja", "tokenizer*"])
        case "gguf":
            assert located.path is not None
            return _converted(located.path)


def tokenizer_folder(name: str, *, revision: str | None = None) -> Path:
    """A folder with a tokenizer and its template: the one named, or what the hub has of them without the weights."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    return _from_hub(name, revision, ["*.json", "*.jinja", "tokenizer*"])


def template_of(folder: Path, replacement: str | None, *, name: str) -> Template:
    """The recipe's template, or the one the model carries."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    tokens = {key: str(config[key]) for key in ("bos_token", "eos_token") if isinstance(config.get(key), str)}
    if replacement is not None:
        return Template(replacement, name=name, tokens=tokens)
    carried = folder / "chat_template.jinja"
    source = carried.read_text(encoding="utf-8") if carried.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        raise InputError(
            f"the model in '{folder}' carries no chat template",
            way_out=f"give one as '{name}.template'",
        )
    return Template(source, name=name, tokens=tokens)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weights and the tokenizer: the same before and after everything we do."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _from_hub(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise InputError(f"'{name}' is neither a path nor a hub id", way_out="give one") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingEnvironment(
            f"the hub model '{name}' cannot be had: {str(error).splitlines()[0]}",
            way_out="check the name and the network, or give a local folder",
        ) from error


def _converted(path: Path) -> Path:
    read_header(path)
    with path.open("rb") as file:
        target = cache_folder() / "gguf" / hashlib.file_digest(file, "sha256").hexdigest()
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
    return Codec(load_tokenizer(folder), template_of(folder, replacement, name=name))
