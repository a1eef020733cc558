"""A model folder's own template, tokens and tokenizer are read as transformers reads them, in every form in which they
are saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.models.save import save_model
from potstill.models.templates import template_of
from potstill.records import Message
from potstill.text.template import Template, day, today
from potstill.text.tokens import Codec, load_tokenizer

WRITES = (
    "{{ bos_token }}{% if tools is none %}no tools{% endif %}{{ pad_token if pad_token is defined }}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = "TOOLS {{ tools | tojson }} " + WRITES
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASKED = Message(role="user", content="film?")

Config = dict[str, Any]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tokenizer of a model that writes its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = WRITES
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def as_dicts(folder: Path, config: Config) -> None:
    for name in ("bos_token", "eos_token", "pad_token"):
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        config[name] = {"__type": "AddedToken", "content": config[name], **flags}


def elsewhere(folder: Path, config: Config) -> None:
    apart = {name: config.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    apart["eos_token"] = {"content": apart["eos_token"], "lstrip": False, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps(apart))


def elsewhere_too_late(folder: Path, config: Config) -> None:
    """Where the configuration lists the added tokens, the other file is not read any more."""
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    config["added_tokens_decoder"] = {"0": {"content": "<|endoftext|>", "special": True}}


def in_the_configuration(folder: Path, config: Config) -> None:
    (folder / "chat_template.jinja").unlink()
    config["chat_template"] = WRITES


def named(folder: Path, config: Config) -> None:
    (folder / "chat_template.jinja").unlink()
    config["chat_template"] = [{"name": "default", "template": WRITES}, {"name": "tool_use", "template": NAMED}]


def named_in_files(folder: Path, config: Config) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(NAMED)


def unstated(folder: Path, config: Config) -> None:
    """Its kind of tokenizer says them: GPT-2's are all <|endoftext|>."""
    for name in ("bos_token", "eos_token", "pad_token"):
        del config[name]
    config["tokenizer_class"] = "GPT2Tokenizer"
    GPT2Config().save_pretrained(folder)


@pytest.mark.parametrize(
    "form", [as_dicts, elsewhere, elsewhere_too_late, in_the_configuration, named, named_in_files, unstated]
)
@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["plain", "tools"])
def test_a_folder_is_read_as_transformers_reads_it(
    folder: Path, form: Callable[[Path, Config], None], tools: tuple[Config, ...]
) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    form(folder, config)
    path.write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    how: Any = {"tools": list(tools) or None, "add_generation_prompt": True, "tokenize": False}
    wanted = tokenizer.apply_chat_template([ASKED.as_dict()], **how)
    assert tokenizer.bos_token in wanted and tokenizer.eos_token in wanted
    assert template_of(folder, None, name="student").render([ASKED], tools=tools, add_generation_prompt=True) == wanted


def test_a_token_that_nobody_names_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NoSuchTokenizer"}))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="does not name the special tokens that its template writes"):
        template_of(folder, None, name="student")


def test_without_a_default_there_is_no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="carries no chat template"):
        template_of(folder, None, name="student")


@pytest.mark.parametrize("switched_on", ["truncation", "padding"])
def test_what_a_tokenizer_was_saved_with_is_switched_off(tiny_model: Path, folder: Path, switched_on: str) -> None:
    saved = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    if switched_on == "truncation":
        saved.enable_truncation(2)
    else:
        saved.enable_padding(length=64)
    saved.save(str(folder / "tokenizer.json"))
    text = "a dull film"
    assert len(saved.encode(text).ids) != len(load_tokenizer(tiny_model).encode(text).ids)
    read = load_tokenizer(folder)
    assert read.encode(text).ids == load_tokenizer(tiny_model).encode(text).ids
    assert read.to_str() == load_tokenizer(tiny_model).to_str()  # the signals' fingerprint
    codec = codec_of(folder, None, name="student")
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template([ASKED.as_dict()], add_generation_prompt=True)
    assert list(codec.prefix([ASKED])) == expected["input_ids"]


def test_a_saved_student_carries_both_templates_and_the_day_it_was_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    with day(date(2024, 7, 26)):
        template = Template("{{ strftime_now('%d %B %Y, %A') }}\n" + WRITES, name="student", tool_use=NAMED)
    codec = Codec(load_tokenizer(tiny_model), template)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    save_model(model, codec, tokenizer_from=tiny_model, end_of_turn=2, max_new_tokens=9, to=tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    for tools in ((), (TOOL,)):
        asked: Any = again.apply_chat_template(
            [ASKED.as_dict()], tools=list(tools) or None, add_generation_prompt=True, tokenize=False
        )
        ours = template_of(tmp_path / "model", None, name="student")
        assert ours.render([ASKED], tools=tools, add_generation_prompt=True) == asked
        assert asked.startswith("TOOLS" if tools else "26 July 2024, Friday\n")


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%-d %B %y", "%A %H:%M:%S", "%I %p %j", "%F %T"])
def test_the_day_reads_as_transformers_would_write_it_then(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Midnight(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.combine(today(), time(), UTC)

    monkeypatch.setattr(chat_template_utils, "datetime", Midnight)
    source = "\n  {% if strftime_now is defined %}{{ strftime_now('" + form + "') }}{% endif %}"
    (wanted,), _ = chat_template_utils.render_jinja_template([[]], chat_template=source)
    template = Template(source, name="student")
    assert template.render([], add_generation_prompt=False) == wanted
    assert Template(template.source, name="student").source == template.source  # dated once


def test_the_blank_tokenizer_class_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers was asked")

    assert isinstance(AutoTokenizer.from_pretrained(folder), PreTrainedTokenizerFast)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", never)
    template_of(folder, "{{ bos_token }}{{ unk_token }}", name="student")
