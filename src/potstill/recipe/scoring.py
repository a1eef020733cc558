"""Who scores answers token by token (`train.scored_by`), and what is kept of it (`train.signal`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe.teacher import Server
from potstill.recipe.values import Values


class ScoredBy(Values):
    """A model that scores answers token by token, in place of the teacher that wrote them: in this process, or behind a
    vLLM server, which gives its `k` most probable tokens and what is left as one outcome."""

    model: str = Field(
        description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package; the name that the "
        "server knows where there is an 'engine'"
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of a hub id; of a served model, which weights the server has"
    )
    licence: str
    template: str | None = Field(None, description="chat template (Jinja) in place of the model's own")
    quantization: Literal["int8"] | None = Field(
        None, description="int8: a byte per weight of the layers' linear maps, half of bf16; embeddings and head stay"
    )
    engine: Server | None = Field(None, description="a server with prompt_logprobs on token ids (vLLM)")
    tokenizer: str | None = Field(None, description="hub id or folder of the served model's tokenizer and template")
    k: Annotated[int, Field(ge=1, le=4096)] = Field(20, description="what vLLM's --max-logprobs allows by default")

    @model_validator(mode="after")
    def _served_or_here(self) -> ScoredBy:
        if self.engine is None and self.tokenizer is not None:
            raise ValueError("'tokenizer' goes with an 'engine': a model in this process brings its own")
        if self.engine is not None and self.quantization is not None:
            raise ValueError(
                "'quantization' is of a model in this process: a served one is quantised where it is served"
            )
        if self.engine is not None and self.tokenizer is None:
            raise ValueError("a served model's tokens must be known: name a hub id or folder in 'tokenizer'")
        if self.engine is not None and (self.engine.template, self.engine.tokenizer) != (None, None):
            raise ValueError("the template and the tokenizer stand beside 'engine', not in it")
        if self.engine is not None and self.engine.form != "openai":
            raise ValueError(f"'engine.form' {self.engine.form} cannot score tokens: vLLM's form is openai")
        return self


class LiveSignal(Values):
    """The whole distribution, computed by the teacher in every epoch anew."""

    kind: Literal["live"]


class TopKSignal(Values):
    """The `k` most probable tokens and what is left as one outcome: 198 bytes per token at 64 of 49,152."""

    kind: Literal["top_k"]
    k: Annotated[int, Field(ge=1, le=4096)] = 64


class SampledSignal(Values):
    """Tokens drawn from the teacher, unbiased in few bytes (Anshumann et al. 2025): about 40 per token at 32 draws."""

    kind: Literal["sampled"]
    draws: Annotated[int, Field(ge=1, le=255)] = 32


class HiddenSignal(Values):
    """Hidden states and the head: the whole distribution for a number per channel."""

    kind: Literal["hidden"]
    dtype: Literal["int8", "bf16"] = "int8"


Signal = Annotated[LiveSignal | TopKSignal | SampledSignal | HiddenSignal, Field(discriminator="kind")]
