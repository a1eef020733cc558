"""Where a model's tokenizer and chat template are: in its folder, or on the hub. Loads no weights and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from potstill.errors import InputError, MissingEnvironment
from potstill.models.locate import read_json
from potstill.text.template import Template, variables

_SPECIAL = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # kinds of tokenizers without tokens of their own


def tokenizer_folder(name: str) -> Path:
    """A folder with a tokenizer and its template: the one named, or what the hub has of them without the weights."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    return from_hub(name, None, ["*.json", "*.jinja", "tokenizer*"])


def template_of(folder: Path, replacement: str | None, *, name: str) -> Template:
    """The recipe's template, or the one the model carries, with the model's tokens that it may write."""
    config = _json(folder / "tokenizer_config.json")
    carried = {"default": replacement} if replacement is not None else _carried(folder, config)
    source = carried.get("default")
    if not isinstance(source, str):
        raise InputError(
            f"the model in '{folder}' carries no chat template",
            way_out=f"give one as '{name}.template'",
        )
    wanted = variables(source) | variables(carried.get("tool_use", ""))
    return Template(source, name=name, tokens=_tokens(folder, config, wanted), tool_use=carried.get("tool_use"))


def _carried(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates by their names, from where transformers takes them: files, else the tokenizer's configuration."""
    files = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    if (alone := folder / "chat_template.jinja").is_file():
        files["default"] = alone
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    stated = config.get("chat_template")
    if isinstance(stated, list):
        return {one["name"]: one["template"] for one in stated}
    return {} if stated is None else {"default": stated}


def _tokens(folder: Path, config: Mapping[str, Any], wanted: Set[str]) -> dict[str, str]:
    """The special tokens by the names that templates call them. Where the files do not say one that is wanted, the
    model's kind of tokenizer may: transformers, which knows them, is asked only then."""
    stated = dict(config)
    if "added_tokens_decoder" not in config:  # as written before 2024
        stated |= _json(folder / "special_tokens_map.json")
    named = stated.get("extra_special_tokens")
    stated |= named if isinstance(named, dict) else {}
    if stated.get("tokenizer_class") not in _PLAIN and any(name in _SPECIAL - stated.keys() for name in wanted):
        return _tokens_of_kind(folder)
    texts = {name: said.get("content") if isinstance(said, dict) else said for name, said in stated.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def _tokens_of_kind(folder: Path) -> dict[str, str]:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True).special_tokens_map
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the tokenizer in '{folder}' does not name the special tokens that its template writes, and transformers "
            f"cannot load it: {str(error).strip().splitlines()[0]}",
            way_out="name them in its tokenizer_config.json",
        ) from None


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def from_hub(name: str, revision: str | None, patterns: list[str]) -> Path:
    """What the hub has of a model that matches the patterns, downloaded unless it is here."""
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
