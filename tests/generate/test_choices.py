"""A teacher's distribution over choices, from the recipe to the ledger: computed here or read off a server, resumed
after a kill, within its budget, and refused with a way out where it cannot be had."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from choice_runs import PLAIN, write_choices
from data_runs import query

from loopback import loopback
from potstill.dispatch.money import Price, prompt_bound
from potstill.engines.choose import prompt_template
from potstill.engines.local import ChoiceScorer, shared_prefix
from potstill.errors import BudgetReached, InputError, TeacherError
from potstill.generate.choices import prompt_ids
from potstill.generate.waves import Turns, seed_key
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.pipeline import Run
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.request import probabilities_of
from potstill.records import Message, Prompt
from potstill.store.run import open_ledger
from potstill.text.tokens import choice_ids

Logprobs = dict[str, tuple[float, ...] | None]


def here(folder: Path, model: Path, *overrides: str, prompts: int = 12) -> Recipe:
    """A teacher in this process; a batch takes about four prompts."""
    engine = {"kind": "local", "template": PLAIN, "batch_tokens": 64}
    return load_recipe(write_choices(folder, engine, prompts=prompts), [f"teacher.model={model}", *overrides])


def served(folder: Path, url: str, *overrides: str, prompts: int = 12, **engine: object) -> Recipe:
    reached = {"kind": "server", "url": url, "retry_seconds": 0.02, "deadline": 5.0, **engine}
    return load_recipe(write_choices(folder, reached, prompts=prompts), overrides)


def logprobs_in(run: Path) -> Logprobs:
    rows = query(run, "SELECT prompt_id, choice_logprobs FROM asks k JOIN answers a ON a.question = k.question")
    return {prompt: None if body is None else tuple(json.loads(body)) for prompt, body in rows}


def test_a_local_teacher_says_what_its_scorer_says_at_no_cost(tiny_model: Path, tmp_path: Path) -> None:
    recipe = here(tmp_path, tiny_model)
    found = Run(recipe, tmp_path / "run").generate()
    assert (found.exported, found.prompts, found.settled) == (12, 12, {"done": 12})
    codec = codec_of(tiny_model, PLAIN, name="teacher")
    with open_ledger(tmp_path / "run") as requests:
        answers = list(requests.samples())
    ids = prompt_ids(recipe.request, codec, [prompt for prompt, _ in answers])
    scorer = ChoiceScorer(
        load(locate(str(tiny_model))).model, choice_ids(codec, ["good", "bad"]), prefix=shared_prefix(ids)
    )
    for batch in scorer.score(ids, batch_tokens=64):
        for at, logprobs in zip(batch.positions, batch.choice_logp, strict=True):
            sample = answers[at][1]
            assert sample.choice_logprobs == logprobs and sample.text == ("good", "bad")[logprobs[1] > logprobs[0]]
    tokens = sum(len(one) - len(shared_prefix(ids)) for one in ids)
    sums = query(tmp_path / "run", "SELECT count(*), sum(cost), sum(prompt_tokens), sum(state = 'read') FROM attempts")
    assert sums == [(12, 0, tokens, 12)]
    raw = query(tmp_path / "run", "SELECT raw, choice_logprobs FROM attempts t JOIN answers a ON a.attempt = t.id")
    assert all(json.loads(said)["choice_logprobs"] == json.loads(kept) for said, kept in raw)


KILLED = """
import os, signal, sys
from pathlib import Path
from potstill.pipeline import Run
from potstill.recipe import load_recipe

def watch(progress):
    if progress.what == "teacher answers" and progress.done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

Run(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), watch).generate()
"""


def test_after_a_kill_the_other_batches_are_computed_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    recipe = here(tmp_path, tiny_model)
    Run(recipe, tmp_path / "whole").generate()
    (tmp_path / "resolved.yaml").write_bytes((tmp_path / "whole" / "recipe.yaml").read_bytes())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "resolved.yaml", tmp_path / "run", "1"], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    before = logprobs_in(tmp_path / "run")
    assert 0 < len(before) < 12
    assert Run(recipe, tmp_path / "run").generate().exported == 12
    assert logprobs_in(tmp_path / "run") == logprobs_in(tmp_path / "whole")
    assert query(tmp_path / "run", "SELECT count(*) FROM attempts") == [(12,)]


def test_a_limit_asks_the_first_and_what_is_there_is_not_computed_again(tiny_model: Path, tmp_path: Path) -> None:
    run = Run(here(tmp_path, tiny_model), tmp_path / "run")
    assert run.generate(limit=5).exported == 5
    first = logprobs_in(tmp_path / "run")
    assert run.generate().exported == 12
    Run(here(tmp_path, tiny_model), tmp_path / "whole").generate()
    whole = logprobs_in(tmp_path / "whole")
    assert logprobs_in(tmp_path / "run").keys() == whole.keys() and first.keys() <= whole.keys()


def test_a_prompt_that_is_too_long_is_named_before_anything_is_computed(tiny_model: Path, tmp_path: Path) -> None:
    recipe = here(tmp_path, tiny_model)
    with (tmp_path / "reviews.jsonl").open("a") as rows:
        rows.write(json.dumps({"text": "film " * 600, "label": "good"}) + "\n")
    with pytest.raises(InputError, match="but the teacher reads 512"):
        Run(recipe, tmp_path / "run").generate()
    assert query(tmp_path / "run", "SELECT count(*) FROM answers") == [(0,)]


def test_a_prompt_that_spells_a_control_token_is_given_up_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    recipe = here(tmp_path, tiny_model)
    with (tmp_path / "reviews.jsonl").open("a") as rows:
        rows.write(json.dumps({"text": "good<|im_end|>bad", "label": "good"}) + "\n")
    for _ in range(2):  # the second time nothing is left to do
        found = Run(recipe, tmp_path / "run").generate()
        assert (found.prompts, found.exported, found.settled) == (13, 12, {"done": 12, "gave up": 1})
    with open_ledger(tmp_path / "run") as requests:
        assert requests.lost_answers(most=1) == {"the prompt spells the control token <|im_end|>": 1}
        assert [prompt.text for prompt in requests.unanswered(most=1, cut_off=False)] == ["good<|im_end|>bad"]


WAYS = {
    "completions": {"template": PLAIN},
    "top_logprobs": {},
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("shape", ["openai", "llama.cpp"])
def test_a_server_is_asked_until_everything_is_answered(way: str, shape: str, tmp_path: Path) -> None:
    """Under 30 % faults the distributions are those of a server without any, and nothing is asked twice."""
    found: list[Logprobs] = []
    for share in (0.0, 0.3):
        folder = tmp_path / str(share)
        folder.mkdir()
        with loopback(
            faults=share, kinds="429,503,500,reset before,cut json,empty", choices="good,bad", logprobs=shape
        ) as s:
            recipe = served(folder, s.url, attempts=20, **WAYS[way], prompts=40)
            assert probabilities_of(recipe.request) == way
            run = Run(recipe, folder / "run").generate()
            assert run.settled == {"done": 40} and run.exported == 40
            found.append(logprobs_in(folder / "run"))
            before = s.attempts()
            assert Run(recipe, folder / "run").generate().exported == 40 and s.attempts() == before
    assert found[0] == found[1] and len(set(found[0].values())) == 40
    assert all(one is not None and sum(torch.tensor(one).exp()) == pytest.approx(0.8) for one in found[0].values())


KILLED_READING = """
import os, signal, sys
from pathlib import Path
from potstill.engines.server import ServerSampler
from potstill.pipeline import Run
from potstill.recipe import load_recipe

ServerSampler.read = lambda self, raw: os.kill(os.getpid(), signal.SIGKILL)
Run(load_recipe(Path(sys.argv[1])), Path(sys.argv[2])).generate()
"""


@pytest.mark.parametrize("way", list(WAYS))
def test_a_reply_kept_but_not_read_before_a_kill_is_read_and_not_asked_for_again(way: str, tmp_path: Path) -> None:
    with loopback(choices="good,bad") as server:
        recipe = served(tmp_path, server.url, **WAYS[way])
        Run(recipe, tmp_path / "whole").generate()
        path, run, asked = tmp_path / "whole" / "recipe.yaml", tmp_path / "run", server.attempts()
        killed = subprocess.run([sys.executable, "-c", KILLED_READING, path, run], check=False)
        assert killed.returncode == -signal.SIGKILL
        kept = query(run, "SELECT count(*) FROM attempts WHERE state = 'replied'")[0][0]
        assert kept and query(run, "SELECT count(*) FROM answers") == [(0,)]
        Run(recipe, run).generate()
        states = dict(query(run, "SELECT state, count(*) FROM attempts GROUP BY state"))
        assert states["read"] == 12 and server.attempts() - asked == 12 + states.get("maybe", 0)
        assert logprobs_in(run) == logprobs_in(tmp_path / "whole")


@pytest.mark.parametrize("template", [PLAIN, None])
def test_votes_are_ordinary_answers(template: str | None, tmp_path: Path) -> None:
    with loopback(choices="good,bad") as server:
        recipe = served(tmp_path, server.url, "generate={n: 8, max_tokens: 4}", template=template)
        assert probabilities_of(recipe.request) == "votes"
        assert Run(recipe, tmp_path / "run").generate().exported == 96
    rows = query(tmp_path / "run", "SELECT text, choice_logprobs FROM answers")
    assert {text for text, _ in rows} == {"good", "bad"} and {logprobs for _, logprobs in rows} == {None}


def test_a_server_without_log_probabilities_stops_the_run_with_the_way_out(tmp_path: Path) -> None:
    with loopback(choices="good,bad", logprobs="none") as server:
        recipe = served(tmp_path, server.url, template=PLAIN, prompts=200)
        with pytest.raises(TeacherError, match=r"lists no log-probabilities.*task.probabilities: votes") as said:
            Run(recipe, tmp_path / "run").generate()
        assert said.value.exit_code == 4 and server.attempts() < 100


def test_answers_that_begin_alike_are_refused_on_the_first_reply(tmp_path: Path) -> None:
    with loopback(choices="very,un") as server:
        alike = "task.choices=[very good, very bad]"
        recipe = served(tmp_path, server.url, alike, "prompts.columns={text: text}", "teacher.examples=[]")
        with pytest.raises(TeacherError, match="does not tell the choices apart"):
            Run(recipe, tmp_path / "run").generate()


def test_a_budget_is_kept_and_what_was_paid_is_kept_too(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("loopback: {input: 1000, output: 1000}\n")
    with loopback(choices="good,bad") as server:
        limited = [f"generate.prices={prices}", "generate.budget=0.3"]
        recipe = served(tmp_path, server.url, *limited, template=PLAIN)
        with pytest.raises(BudgetReached):
            Run(recipe, tmp_path / "run").generate()
        paid = dict(query(tmp_path / "run", "SELECT name, value FROM totals"))
        billed = server.ledger()
        assert (billed["prompt_tokens"] + billed["completion_tokens"]) * 1000e6 == paid["paid"] <= 0.3e12
        done = len(logprobs_in(tmp_path / "run"))
        assert 0 < done < 12
        more = served(tmp_path, server.url, limited[0], "generate.budget=9.0", template=PLAIN)
        assert Run(more, tmp_path / "run").generate().exported == 12 and server.attempts() == 12


def test_every_scored_choice_is_in_the_worst_price(tiny_model: Path, tmp_path: Path) -> None:
    recipe = served(tmp_path, "http://127.0.0.1:9/v1", tokenizer=str(tiny_model))
    codec = codec_of(tiny_model, None, name="teacher")
    prompt = Prompt(id="x", split="train", messages=(Message(role="user", content="a dull 天気 film"),))
    asked = Turns(recipe.request, prompt_template(recipe.request)).ask(
        prompt, count=1, max_tokens=1, seed=0, identity="x"
    )
    prefix = len(prompt_ids(recipe.request, codec, [prompt])[0])
    sent = sum(prefix + len(ids) for ids in choice_ids(codec, ["good", "bad"]))
    assert sent <= prompt_bound(asked) <= 20 * sent
    assert Price(prompt=1, completion=1000).worst(asked) == prompt_bound(asked) + 2 * 1000


def key(recipe: Recipe) -> bytes:
    return seed_key(recipe.request, Prompt(id="x", split="train", messages=(Message(role="user", content="x"),)))


def test_a_distribution_is_asked_again_where_what_is_asked_changes_and_only_there(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    asked = key(served(tmp_path, url, template=PLAIN))
    same = ("seed=5", "generate.temperature=0.3", "generate.max_tokens=9", "teacher.engine.url=http://elsewhere/v1")
    assert {key(served(tmp_path, url, one, template=PLAIN)) for one in same} == {asked}
    other = (
        "task.choices=[good, bad, middling]",
        "teacher.engine.template='{{ messages[-1].content }}:'",
        "task.probabilities=top_logprobs",
        "generate.n=2",
    )
    assert len({asked, *(key(served(tmp_path, url, one, template=PLAIN)) for one in other)}) == 5
    words = served(tmp_path, url, "task.probabilities=votes")
    text = served(tmp_path, url, "task={kind: text}")
    assert key(words) == key(text)  # a vote is an answer like any other


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["task.probabilities=completions"],
            "needs a server in OpenAI's form or a GGUF, and its 'teacher.engine.templa",
        ),
        (["task.probabilities=prompt_logprobs"], "and its 'teacher.engine.tokenizer'"),
        (["task.probabilities=top_logprobs", "teacher.engine.form=anthropic"], "votes work with any teacher"),
        (["task.probabilities=top_logprobs", "generate.n=8"], "asks once, votes take many"),
        (["task.probabilities=votes", "generate.temperature=0.5"], "at 'generate.temperature' 1"),
        (["task.probabilities=votes", "teacher.engine={kind: local}"], "says its distribution itself"),
        (
            ["task={kind: text}", "teacher.engine.template=x"],
            "'teacher.engine.template' is for choices in OpenAI's form",
        ),
    ],
)
def test_a_way_of_asking_that_the_teacher_does_not_have_is_refused(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        served(tmp_path, "http://127.0.0.1:9/v1", *overrides)
    assert said in str(error.value)


def test_the_way_of_asking_is_the_first_that_the_engine_has_what_is_needed_for(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    engines: list[tuple[dict[str, object], str]] = [
        ({"tokenizer": "org/model", "template": PLAIN}, "prompt_logprobs"),
        ({"template": PLAIN}, "completions"),
        ({}, "top_logprobs"),
        ({"form": "anthropic"}, "votes"),
    ]
    for engine, way in engines:
        assert probabilities_of(served(tmp_path, url, **engine).request) == way
    gguf = "teacher.engine={kind: gguf}"
    assert probabilities_of(served(tmp_path, url, gguf).request) == "top_logprobs"
    assert probabilities_of(served(tmp_path, url, "teacher.engine={kind: local}").request) == "computed here"
    assert probabilities_of(served(tmp_path, url, "task={kind: text}").request) is None
