"""Servers of all manners: what is answered, what it costs by their book and by ours, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from data_runs import query, write_prompts
from manners import MANNERS

from loopback import Loopback, loopback
from potstill.console import show_generated
from potstill.errors import TeacherError
from potstill.pipeline import Run
from potstill.recipe import Recipe

PROMPTS, READ, WRITTEN = 4, 100, 400  # prompts, and dollars for a million tokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """`answers` to the four prompts (0: exit 4), and what is `said` of the rest; `doubled`: as many again where two are
    asked for at once. `unclear`: what was billed is not known, at most. `tools`: the prompts have some."""

    answers: int = PROMPTS
    said: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    generate: Mapping[str, Any] = field(default_factory=dict[str, Any])
    doubled: bool = True
    unclear: bool = False
    tools: bool = False


AZURE = {"headers": {"api-key": {"env": "AZURE_KEY"}}, "query": {"api-version": "2024-10-21"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CLAUDE = {"form": "anthropic"}
HASTY = {"deadline": 0.3, "attempts": 50}
CASES: dict[str, Case] = {
    "polite": Case(),
    "too fast": Case(said="rate limited: 12 requests; the first: slow down"),
    "milliseconds": Case(said="rate limited: 8 requests; the first: slower"),
    "quota": Case(answers=0, said="(HTTP 429, not allowed): You exceeded your current quota"),
    "balance": Case(answers=0, said="(HTTP 402, not allowed): Insufficient Balance"),
    "wrong key": Case(answers=0, said="(HTTP 401, not allowed): Incorrect API key provided"),
    "no access": Case(answers=0, said="(HTTP 403, not allowed): Your country is not supported"),
    "no model": Case(answers=0, said="(HTTP 404, wrong address): The model `loopback` does not exist"),
    "moved": Case(answers=0, said="(HTTP 307, wrong address)"),
    "too long": Case(answers=3, said="refused: 1 requests; the first: maximum context length is 2048 tokens"),
    "filter": Case(answers=3, said="refused: 1 requests; the first: The response was filtered"),
    "too large a body": Case(answers=3, said="refused: 1 requests; the first: <h1>Request Entity Too Large</h1>"),
    "strict fields": Case(answers=0, said='refused: [{"type": "extra_forbidden", "loc": ["body", "seed"]'),
    "strict fields / mended": Case(generate={"parameters": {"seed": None}}),
    "other limit": Case(answers=0, said="refused: use 'max_completion_tokens' instead; change how it is asked"),
    "other limit / mended": Case(engine={"limit_field": "max_completion_tokens"}),
    "no sampling": Case(answers=0, said="refused: not supported"),
    "no sampling / mended": Case(generate={"parameters": {"temperature": None, "top_p": None}}),
    "other name": Case(answers=0, said="refused: random_seed is missing"),
    "other name / mended": Case(engine={"names": {"seed": "random_seed"}}),
    "one answer": Case(doubled=False),
    "one answer / two": Case(
        answers=0, said="refused: n must be 1", engine={"samples_per_request": 2}, generate={"n": 2}, doubled=False
    ),
    "deployment": Case(answers=0, said="(HTTP 404, wrong address): Resource not found"),
    "deployment / azure": Case(engine=AZURE),
    "no tools": Case(),
    "no tools / asked": Case(answers=0, said="refused: tools are not supported by this model", tools=True),
    "timeout": Case(said="server error: 4 requests; the first: too slow a request"),
    "broken": Case(said="server error: 4 requests; the first: CUDA error: an illegal memory access"),
    "dead": Case(answers=0, said="server error: Internal Server Error"),
    "gateway": Case(said="gateway: 4 requests; the first: Bad Gateway"),
    "loading": Case(said="overloaded: 8 requests; the first: Loading model"),
    "overloaded": Case(said="overloaded: 4 requests; the first: Overloaded"),
    "compressed error": Case(said="overloaded: 4 requests; the first: (compressed)"),
    "429 inside": Case(said="rate limited: 20 requests; the first: Rate limit exceeded upstream"),
    "502 inside": Case(said="server error: 4 requests; the first: Provider returned error"),
    "quota inside": Case(answers=0, said="(HTTP 200, not allowed): Your credits are used up"),
    "400 inside": Case(answers=3, said="refused: 1 requests; the first: maximum context length is 2048 tokens"),
    "words inside": Case(said="server error: 4 requests; the first: something went wrong"),
    "object error": Case(answers=0, said="(HTTP 200, wrong address): no such model"),
    "busy inside": Case(said="overloaded: 8 requests; the first: Overloaded", engine=CLAUDE, doubled=False),
    "breaks off": Case(said="server error: 4 requests; the first: upstream idle timeout"),
    "breaks off, billed": Case(said="server error: 4 requests; the first: upstream idle timeout"),
    "one breaks off": Case(),
    "plain text": Case(),
    "no type": Case(),
    "byte order mark": Case(),
    "events": Case(answers=0, said="unreadable: a stream of events, not JSON: data:"),
    "log-in page": Case(answers=0, said="unreadable: of content type HTML, perhaps a log-in page", unclear=True),
    "half a reply": Case(said='unreadable: 4 requests; the first: something, not JSON: {"choices": [{"mess'),
    "no choices": Case(said="unreadable: 4 requests; the first: an empty list of choices"),
    "no usage": Case(),
    "empty usage": Case(),
    "usage in floats": Case(),
    "hangs": Case(said="requests; the first: no reply within 0.3 s", engine=HASTY),
    "drips": Case(said="requests; the first: no reply within 0.3 s", engine=HASTY),
    "resets": Case(said="connection lost: 4 requests"),
    "endless": Case(said="too large: 4 requests; the first: a reply above 50,000 bytes"),
    "ignores n": Case(),
    "filters": Case(answers=3, said="filtered by the provider: 1 answers"),
    "thinks": Case(),
    "thinks long": Case(generate={"truncated": "longer", "longest": 128}),
    "cuts": Case(),
    "cuts / dropped": Case(answers=3, said="cut off at 64 tokens: 1 answers", generate={"truncated": "drop"}),
    "calls": Case(tools=True),
    "both": Case(
        answers=0, said="refused: `temperature` and `top_p` cannot both be given", engine=CLAUDE, doubled=False
    ),
    "both / mended": Case(engine=CLAUDE, generate={"parameters": {"top_p": None}}, doubled=False),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


def recipe_of(folder: Path, server: Loopback, path: str, case: Case, *, two: bool) -> Recipe:
    prices = folder / "prices.yaml"
    prices.write_text(f"loopback: {{input: {READ}, output: {WRITTEN}}}\n")
    source = write_prompts(folder, PROMPTS)
    columns = {"text": "text", **({"tools": "tools"} if case.tools else {})}
    if case.tools:
        rows = [json.loads(line) | {"tools": [TOOL]} for line in source.read_text().splitlines()]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    at_once = {"samples_per_request": 2} if two else {}
    pace = {"retry_seconds": 0.01, "attempts": 3, "deadline": 60.0, "max_reply_bytes": 50_000}
    asked = {"n": 2, "budget": 1000.0} if two else {}
    engine = {"kind": "server", "url": f"{server.root}/manners/{quote(path, safe='')}/v1", **pace}
    return Recipe.model_validate(
        {
            "name": "manners",
            "prompts": {"source": str(source), "licence": "mit", "columns": columns},
            "teacher": {"model": "loopback", "licence": "mit", "engine": {**engine, **at_once, **case.engine}},
            "generate": {"max_tokens": 64, "prices": str(prices), **asked, **case.generate},
        }
    )


def said_of(run: Run, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How many answers there are, and what is said."""
    try:
        found = run.generate()
    except TeacherError as error:
        return 0, str(error)
    show_generated(found, as_json=False)
    return found.exported, " ".join(capsys.readouterr().out.split())


def test_every_manner_is_in_the_table() -> None:
    assert {name.partition(" / ")[0] for name in CASES} == set(MANNERS) and len(MANNERS) >= 40


@pytest.mark.parametrize(
    ("name", "two"),
    [(name, two) for name, case in CASES.items() for two in (False, True) if case.doubled or not two],
)
def test_a_manner(
    tmp_path: Path,
    server: Loopback,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    two: bool,
) -> None:
    monkeypatch.setenv("AZURE_KEY", "k" * 9)
    case, path = CASES[name], f"{name} / {two}"
    answers, said = said_of(Run(recipe_of(tmp_path, server, path, case, two=two), tmp_path / "run"), capsys)
    asked = case.generate.get("n", 1) * (2 if two else 1)
    assert answers == case.answers * asked, said
    assert case.said in said or two, said
    assert case.said.partition(":")[0] in said, said
    check_money(server, path, tmp_path / "run", unclear=case.unclear)


def check_money(server: Loopback, path: str, run: Path, *, unclear: bool) -> None:
    read, written, untold_read, untold_written = server.ledger()["manners"][path]
    picodollars = 1_000_000
    told = (read * READ + written * WRITTEN) * picodollars
    untold = (untold_read * READ + untold_written * WRITTEN) * picodollars
    totals = dict(query(run, "SELECT name, value FROM totals"))
    ours = totals.get("paid", 0) + totals.get("maybe", 0)
    assert ours >= told + untold
    if not (untold or unclear):
        assert ours == told
