"""A student before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from potstill.errors import InputError
from potstill.models.documents import Documents
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.models.lora import adapt, merged, unmoved
from potstill.models.save import save_model
from potstill.models.student import choose_layers, freeze, random_weights, take_layers
from potstill.recipe.student import Student
from potstill.records import Message, Progress
from potstill.text.tokens import Codec, Ids
from potstill.train.traces import ArmFiles

if TYPE_CHECKING:
    from peft import LoraModel

_SAMPLE, _SAMPLE_TOKENS = 256, 512  # conversations that rank layers, and the most tokens read of each
_WORTH_SAYING = 0.05  # norms, routers and biases of any model are less


@dataclass(frozen=True, slots=True)
class InitialStudent:
    """The student before its first step, what it reads and writes, the folder its tokenizer comes from, and which
    `layers` of its start it has, `of` so many."""

    settings: Student
    model: PreTrainedModel
    codec: Codec
    folder: Path
    layers: tuple[int, ...]
    of: int


def initial_student(
    settings: Student,
    sample: Sequence[Sequence[Message]] = (),
    *,
    seed: int,
    layers: Sequence[int] | None = None,
    loads_on: torch.device | None = None,
) -> InitialStudent:
    """With the given layers, or those that the recipe asks for: ranked ones by the `sample` of conversations. `seed`
    draws random weights."""
    start = load(locate(settings.start), revision=settings.revision, dtype=torch.float32, on=loads_on)
    codec = codec_of(start.folder, settings.template, name="student")
    wanted = settings.layers if layers is None else tuple(layers)
    documents = _sample_text(sample, codec, start.model.device)
    chosen = choose_layers(start.model, wanted, documents)
    if settings.freeze_layers >= len(chosen):
        raise InputError(
            f"student.freeze_layers is {settings.freeze_layers}, but the student has {len(chosen)} layers",
            way_out="freeze fewer layers",
        )
    of = start.model.config.num_hidden_layers
    if settings.weights == "random":
        model = random_weights(start.model, chosen, seed=seed)
    else:
        model = take_layers(start.model, chosen)
    return InitialStudent(settings, model, codec, start.folder, chosen, of)


def _sample_text(conversations: Sequence[Sequence[Message]], codec: Codec, device: torch.device) -> Iterator[Documents]:
    """A few at a time, as the student reads them, without reasoning: not every template writes it."""
    turns = [(asked, replace(said, reasoning_content=None)) for *asked, said in conversations[:_SAMPLE]]
    texts: list[Ids] = []
    for asked, said in turns:
        with suppress(InputError):  # what cannot be learnt ranks nothing
            prefix, turn = codec.example(asked, said)
            texts.append((*prefix, *turn)[:_SAMPLE_TOKENS])
    for begin in range(0, len(texts), 8):
        yield Documents.of(texts[begin : begin + 8], device)


def adapted(start: InitialStudent, files: ArmFiles, *, seed: int) -> LoraModel | None:
    """Freeze what does not learn; with LoRA, put its adapters in. Where nobody chose their targets and they leave much
    of the layers as it is, that is said."""
    settings, lora = start.settings, start.settings.lora
    adapters = None if lora is None else adapt(start.model, lora, seed=seed)
    if lora is not None and lora.targets is None and (share := unmoved(start.model)) > _WORTH_SAYING:
        note = f"{share:.0%} of the layers' weights are in no linear map that an adapter moves: they stay as they are"
        files.watch(Progress(stage="train", what=f"adapters of {files.arm}", done=1, total=1, note=note))
    freeze(start.model, embeddings=settings.keeps_embeddings, layers=settings.freeze_layers)
    return adapters


def save(start: InitialStudent, *, longest: int, to: Path, adapters: LoraModel | None = None) -> None:
    """A model folder that writes at most `longest` tokens and a few."""
    end, model = start.codec.end_of_turn("x"), start.model if adapters is None else merged(adapters)
    save_model(model, start.codec, tokenizer_from=start.folder, end_of_turn=end, max_new_tokens=longest + 8, to=to)
