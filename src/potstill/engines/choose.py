"""Which sampler a request asks for, and in which form."""

from __future__ import annotations

from pathlib import Path

from potstill.engines.canned import canned_from
from potstill.engines.chat import Anthropic, Chat, Continuation, Form
from potstill.engines.sampler import Sampler
from potstill.errors import InputError
from potstill.models.locate import facts, locate
from potstill.models.templates import template_of, tokenizer_folder
from potstill.recipe import GenerationRequest
from potstill.recipe.request import probabilities_of
from potstill.recipe.task import Choice, Probabilities
from potstill.recipe.teacher import Batches, Canned, Gguf, Local, Server
from potstill.text.template import Template
from potstill.text.tokens import Codec, choice_ids, load_tokenizer


def sampler_for(request: GenerationRequest) -> Sampler:
    """Raises a PotstillError for everything that can be known to be wrong before a request. Sends nothing."""
    teacher, how = request.teacher, request.generate
    match teacher.engine:
        case Server() as engine:
            from potstill.engines.server import ServerSampler  # aiohttp costs 0.2 s

            return ServerSampler(engine, form_of(request))
        case Canned() as engine:
            return canned_from(Path(engine.answers))
        case Gguf() as engine:
            from potstill.engines.gguf import GgufSampler

            return GgufSampler(_gguf_file(teacher.model), engine, form_of(request))
        case Local() as engine:
            from potstill.engines.writer import LocalSampler  # torch takes seconds

            return LocalSampler(teacher.model, teacher.revision, how, engine)
        case Batches() as engine:
            from potstill.engines.batches import BatchSampler

            return BatchSampler(teacher, how, engine)


def prompt_template(request: GenerationRequest) -> Template | None:
    """The template in which prompts are sent as text, or None where they are sent as messages. Raises InputError."""
    match probabilities_of(request), request.teacher.engine:
        case "prompt_logprobs", Server(tokenizer=str()) as engine:
            return _codec(engine).template
        case "completions" | "votes", Server(form="openai", template=str(source)) | Gguf(template=str(source)):
            return Template(source, name="teacher")
        case _:
            return None


def form_of(request: GenerationRequest) -> Form:
    """How a server or a GGUF is asked. Raises InputError."""
    teacher, how, engine = request.teacher, request.generate, request.teacher.engine
    sampled = {"temperature": how.temperature, "top_p": how.top_p}
    model, limit = {"model": teacher.model}, engine.limit_field if isinstance(engine, Server) else "max_tokens"
    asked = probabilities_of(request)
    if asked is None or asked == "votes" or asked == "computed here" or not isinstance(request.task, Choice):
        write = Chat if prompt_template(request) is None else Continuation
        write = Anthropic if isinstance(engine, Server) and engine.form == "anthropic" else write
        return write({**model, **sampled, **how.parameters}, limit)
    return _distribution({**model, **how.parameters}, request.task.choices, asked, engine, limit)


def _distribution(
    constant: dict[str, object], choices: tuple[str, ...], asked: Probabilities, engine: object, limit: str
) -> Form:
    from potstill.engines.choices import Completions, PromptLogprobs, TopLogprobs

    codec = _codec(engine) if isinstance(engine, Server) and engine.tokenizer is not None else None
    ids = None if codec is None else choice_ids(codec, choices)
    match asked, engine:
        case "prompt_logprobs", Server(form="openai") if codec is not None and ids is not None:
            return PromptLogprobs(constant, codec, choices, ids)
        case "completions", Server(form="openai", template=str()) | Gguf(template=str()):
            _check_first_tokens(choices, ids)
            return Completions(constant, choices)
        case "top_logprobs", Server(form="openai") | Gguf():
            _check_first_tokens(choices, ids)
            return TopLogprobs(constant, choices, limit)
        case _:
            raise InputError(
                f"task.probabilities: this teacher is not asked for {asked}",
                way_out="give its engine what that needs, or ask for votes",
            )


def _check_first_tokens(choices: tuple[str, ...], ids: tuple[tuple[int, ...], ...] | None) -> None:
    """Where the tokenizer is known, choices that begin alike are refused before anything is paid for."""
    first = [one[0] for one in ids or ()]
    if twice := next((i for i, token in enumerate(first) if token in first[:i]), None):
        other = first.index(first[twice])
        raise InputError(
            f"task.choices: '{choices[other]}' and '{choices[twice]}' begin with the same token, which is all that "
            "this way of asking sees",
            way_out="ask for prompt_logprobs or votes (task.probabilities), or choose answers that begin differently",
        )


def _codec(server: Server) -> Codec:
    assert server.tokenizer is not None
    folder = tokenizer_folder(server.tokenizer)
    return Codec(load_tokenizer(folder), template_of(folder, server.template, name="teacher"))


def _gguf_file(model: str) -> Path:
    located = locate(model)
    if located.form != "gguf" or located.path is None:
        raise InputError(
            f"teacher.model: '{model}' is no .gguf file", way_out="give one, or another teacher.engine.kind"
        )
    facts(located)  # a damaged file is refused before llama.cpp sees it
    return located.path
