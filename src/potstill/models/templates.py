"""Where a model's tokenizer and chat template are: in its folder, or on the hub. Loads no weights and no torch."""

from __future__ import annotations

from pathlib import Path

from potstill.errors import InputError, MissingEnvironment
from potstill.models.locate import read_json
from potstill.text.template import Template


def tokenizer_folder(name: str) -> Path:
    """A folder with a tokenizer and its template: the one named, or what the hub has of them without the weights."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    return from_hub(name, None, ["*.json", "*.jinja", "tokenizer*"])


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
