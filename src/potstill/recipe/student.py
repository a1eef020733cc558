"""The student: layers of a model, or all of it (`student`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from potstill.recipe.values import Count, Positive, Probability, Values, by_kind, public_name


class Spaced(Values):
    """So many layers, evenly spaced, the first and the last among them."""

    spaced: Count


class Ranked(Values):
    """The so many layers that change their input the most on what the student will learn (Block Influence; Men et al.
    2024, ShortGPT)."""

    ranked: Count


def _each_once(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers:
        raise ValueError("an empty list leaves no layer: name some, or give null for all")
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise ValueError(f"layer {twice[0]} stands there twice")
    return layers


def _form(given: object) -> str:
    if isinstance(given, dict):
        return "<ranked>" if "ranked" in cast("dict[str, object]", given) else "<spaced>"
    if isinstance(given, Values):
        return "<ranked>" if isinstance(given, Ranked) else "<spaced>"
    return "<list>" if isinstance(given, list | tuple) else "<first>"


Listed = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_each_once)]
Layers = Annotated[
    Annotated[Count, Tag("<first>")]
    | Annotated[Listed, Tag("<list>")]
    | Annotated[Spaced, Tag("<spaced>")]
    | Annotated[Ranked, Tag("<ranked>")],
    Discriminator(_form),
]
"""The first so many, these (counted from 0, in this order), or as `Spaced` and `Ranked` say."""


class Lora(Values):
    """Two thin matrices beside each linear map of the layers learn, each expert of a mixture its own, and nothing else;
    they are added to the weights at the end (low-rank adaptation; Hu et al. 2022). What they add is scaled by `alpha` /
    `rank`. `dropout` is of what goes into them, but for experts that lie side by side in one parameter."""

    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="last names of the linear maps, such as q_proj or gate_up_proj of experts; by default all",
    )


class Student(Values):
    """A causal language model: layers of the model `start`, or all of it. It need not be the teacher."""

    kind: Literal["causal_lm"] = "causal_lm"
    start: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str
    weights: Literal["start", "random"] = Field(
        "start", description="random: the start's shape and tokenizer with fresh weights, which all learn"
    )
    layers: Layers | None = None
    lora: Lora | None = None
    freeze_embeddings: bool = Field(True, description="keep the start's embeddings, and its head where they are tied")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(0, description="keep that many first layers as they are too")
    template: str | None = None

    @property
    def has_learned(self) -> bool:
        """Whether it begins with weights that have learned something."""
        return self.weights == "start"

    @property
    def keeps_embeddings(self) -> bool:
        """Whether they are not trained: those of random weights always are."""
        return self.freeze_embeddings and self.weights == "start"

    def made_of(self, layers: Sequence[int], of: int | None) -> str:
        """ "the first 4 of 30 layers of Qwen/Qwen3-0.6B", and that the weights are random where they are."""
        made = f"{spoken_layers(layers, of)} of {public_name(self.start)}"
        return f"random weights in the shape of {made}" if self.weights == "random" else made

    @property
    def taken(self) -> int | None:
        """How many layers the student has; None: as many as its start."""
        match self.layers:
            case Spaced(spaced=count) | Ranked(ranked=count):
                return count
            case tuple():
                return len(self.layers)
            case _:
                return self.layers

    @model_validator(mode="after")
    def _something_learns(self) -> Student:
        if self.weights == "random":
            ranked = isinstance(self.layers, Ranked)
            unread = {"lora": self.lora, "freeze_layers": self.freeze_layers, "layers.ranked": ranked}
            if said := next((key for key, value in unread.items() if value), None):
                raise ValueError(f"'{said}' builds on what the start has learnt: 'weights' random has none of it")
        if self.taken is not None and self.freeze_layers >= self.taken:
            raise ValueError(f"'freeze_layers' is {self.freeze_layers}: no layer of {self.taken} would learn")
        return self


class EncoderShape(Values):
    """An encoder with random weights (ModernBERT's architecture), reading the teacher's tokens."""

    layers: Count = 2
    hidden: Count = 128
    heads: Count = 2
    dropout: Probability = 0.1

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> EncoderShape:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"'hidden' is {self.hidden}, which {self.heads} heads cannot share in even parts")
        return self


class Encoder(Values):
    """A classifier with the choices as its labels. It starts from a model, from that model's shape with random weights,
    or from a `shape` of its own, whose tokenizer is that of `tokenizer`."""

    kind: Literal["encoder"]
    start: str | None = Field(None, description="hub id or folder of an encoder; its own tokenizer is used")
    revision: str | None = None
    licence: str | None = Field(None, description="of what it starts from")
    weights: Literal["start", "random"] = "start"
    shape: EncoderShape | None = None
    tokenizer: str | None = Field(None, description="hub id, folder or .gguf file whose tokens a `shape` reads")

    @property
    def has_learned(self) -> bool:
        """Whether it begins with weights that have learned something."""
        return self.start is not None and self.weights == "start"

    @model_validator(mode="after")
    def _one_beginning(self) -> Encoder:
        if (self.start is None) == (self.shape is None):
            raise ValueError("name exactly one of 'start' and 'shape'")
        if (self.start is None) != (self.licence is None):
            raise ValueError("'licence' is that of 'start': name both or none")
        if (self.shape is None) != (self.tokenizer is None):
            raise ValueError("'tokenizer' goes with a 'shape', which has none of its own: name both or none")
        if self.shape is not None and self.weights == "random":
            raise ValueError("the weights of a 'shape' are random already: leave 'weights' out")
        return self


AnyStudent = Annotated[Annotated[Student, Tag("causal_lm")] | Annotated[Encoder, Tag("encoder")], by_kind("causal_lm")]


def spoken_layers(layers: Sequence[int], of: int | None) -> str:
    """ "the first 4 of 30 layers", "all 28 layers", "the layers 0, 4 and 9 (counted from 0) of 30"."""
    if list(layers) != list(range(len(layers))):
        before = ", ".join(map(str, layers[:-1]))
        named = f"layers {before} and {layers[-1]}" if before else f"layer {layers[-1]}"
        return f"the {named} (counted from 0)" + (f" of {of}" if of else "")
    if len(layers) == of:
        return f"all {of} layers"
    return f"the first {len(layers)}" + (f" of {of} layers" if of else " layers")
