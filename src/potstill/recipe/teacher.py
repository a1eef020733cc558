"""Who writes, and how it is reached (`teacher`); a judge is described in the same way."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from potstill.recipe.values import Count, Positive, Probability, Values


class FromEnvironment(Values):
    """A value that stands in an environment variable, and nowhere else."""

    env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]{0,99}$")]


_Value = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[FromEnvironment, Tag("<variable>")],
    Discriminator(lambda given: "<variable>" if isinstance(given, dict | FromEnvironment) else "<text>"),
]
_Said = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], _Value]
_SECRET = re.compile("auth|key|token|secret|cookie|passw|credential|signature", re.IGNORECASE)


class Http(Values):
    """How a server is reached. A key stands in an environment variable or in a file of mode 0600, never here."""

    url: str = Field(description="the base address, such as http://127.0.0.1:8000/v1")
    key_env: str | None = Field(None, description="name of the environment variable that holds the key")
    key_file: str | None = Field(None, description="path of a file of mode 0600 that holds the key")
    headers: _Said = Field(
        default_factory=dict[str, str | FromEnvironment],
        description="headers of one's own, such as {api-key: {env: AZURE_KEY}}: secrets stand in the environment",
    )
    query: _Said = Field(
        default_factory=dict[str, str | FromEnvironment],
        description="what stands behind the address, such as {api-version: 2024-10-21}",
    )
    deadline: Positive = Field(600.0, description="seconds from sending a request to its last byte")
    attempts: Count = Field(8, description="how often one answer is tried before it is given up")
    retry_seconds: Positive = Field(1.0, description="wait before the first retry; it doubles up to a minute")
    patience: Positive = Field(
        600.0, description="seconds without a single success after which a run stops whose server has answered before"
    )

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#\s]*)?", url):
            raise ValueError(
                "'url' must be http(s)://HOST[:PORT][/PATH] without user, password or query "
                "(the value is not shown, it may hold a secret)"
            )
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_name_not_a_key(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name):
            raise ValueError("'key_env' is the NAME of an environment variable, such as TEACHER_KEY, not the key")
        return name

    @field_validator("headers", "query")
    @classmethod
    def _no_secret(cls, said: _Said) -> _Said:
        for name, value in said.items():
            if isinstance(value, str) and (_SECRET.search(name) or not value.isascii() or not value.isprintable()):
                problem = f"'{name}' may hold a secret" if _SECRET.search(name) else f"'{name}' is no text of one line"
                raise ValueError(f"{problem}: name the environment variable that holds it, {{env: {_variable(name)}}}")
        return said

    @model_validator(mode="after")
    def _one_key(self) -> Http:
        if self.key_env and self.key_file:
            raise ValueError("name one of 'key_env' and 'key_file'")
        return self


Names = dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]
_NAMES = "parameters that the server knows under another name, such as {seed: random_seed}"


class Server(Http):
    """An OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, commercial APIs) or Anthropic's messages."""

    kind: Literal["server"]
    form: Literal["openai", "anthropic"] = "openai"
    in_flight: Count = Field(256, description="most requests at once; the number found to work adapts below it")
    start_in_flight: Count = 16
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_reply_bytes: Count = 16 << 20
    samples_per_request: Count = Field(1, description="above 1, sent as `n`: prompt tokens are paid once")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the latter for models that think out of sight: it counts those tokens too"
    )
    names: Names = Field(default_factory=dict[str, str], description=_NAMES)
    template: str | None = Field(
        None,
        description="the model's chat template (Jinja): choices are asked for in text over `/completions`, not in "
        "messages. Without the token that begins a text, which the server adds; with a `tokenizer` in place of its own",
    )
    tokenizer: str | None = Field(None, description="hub id or folder of the model's tokenizer (choices, vLLM)")

    @model_validator(mode="after")
    def _consistent(self) -> Server:
        if self.form == "anthropic" and self.samples_per_request > 1:
            raise ValueError("'samples_per_request' must be 1: Anthropic's messages give one answer per request")
        return self


class Batches(Http):
    """Provider batch files in OpenAI's form: upload, wait, download; slower and cheaper."""

    kind: Literal["batches"]
    requests_per_file: Count = 10_000
    poll_seconds: Positive = 30.0
    price_factor: Probability = Field(0.5, description="what a token costs compared with the price file")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    names: Names = Field(default_factory=dict[str, str], description=_NAMES)


class Gguf(Values):
    """A .gguf file, in this process, through llama.cpp (`pip install xllamacpp`)."""

    kind: Literal["gguf"]
    slots: Count = Field(8, description="answers written at once")
    context: Count = Field(2048, description="tokens of prompt and answer together")
    threads: Count = 2
    template: str | None = Field(
        None, description="chat template (Jinja) in place of the model's own, where choices are asked for"
    )


class Local(Values):
    """A `transformers` model in this process."""

    kind: Literal["local"]
    template: str | None = Field(None, description="chat template (Jinja) in place of the model's own")
    slots: Count = Field(16, description="answers written at once")
    batch_tokens: Count = Field(1024, description="tokens read at once where it scores choices")


class Canned(Values):
    """Answers from a JSONL file of {"prompt": ..., "answer": ...}: dry runs and tests."""

    kind: Literal["canned"]
    answers: str


Engine = Annotated[Server | Batches | Gguf | Local | Canned, Field(discriminator="kind")]


def _variable(name: str) -> str:
    return re.sub("[^A-Z0-9]", "_", name.upper())


class Shot(Values):
    """A worked example in the teacher's prompt."""

    prompt: str
    answer: str


class Teacher(Values):
    """The teacher, and what it reads before every prompt."""

    model: str = Field(description="the name that the server knows, a hub id, a folder, or a .gguf file")
    revision: str | None = None
    licence: str
    instructions: str | None = None
    examples: tuple[Shot, ...] = ()
    reasoning_tags: Annotated[
        tuple[str, str] | None,
        Field(description="between which marks it thinks, such as ['<think>', '</think>']; the usual ones are known"),
    ] = None
    engine: Engine

    @field_validator("reasoning_tags")
    @classmethod
    def _two_marks(cls, tags: tuple[str, str] | None) -> tuple[str, str] | None:
        if tags is not None and (not all(tag.strip() for tag in tags) or tags[0] == tags[1]):
            raise ValueError(f"'reasoning_tags' are {list(tags)}: give the one that opens and the one that closes")
        return tags
