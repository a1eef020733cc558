"""What a server can do to us, and what we refuse to do for it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loopback import loopback
from potstill.engines.chat import Anthropic, Chat, Continuation, renamed
from potstill.engines.choices import TopLogprobs
from potstill.engines.http import check_address, forbidden
from potstill.engines.keys import Key, find_key
from potstill.engines.sampler import Ask, Failure
from potstill.engines.server import ServerSampler
from potstill.errors import InputError
from potstill.recipe.generate import Generate
from potstill.recipe.teacher import FromEnvironment, Server

ASK = Ask(messages=({"role": "user", "content": "why?"},), count=1, max_tokens=9, seed=3, identity="i")


def sampler(url: str, **engine: Any) -> ServerSampler:
    server = Server(kind="server", url=url, **{"deadline": 1.0, "max_reply_bytes": 10_000, **engine})
    how: dict[str, object] = {"model": "m", "temperature": 1.0, "top_p": 1.0}
    return ServerSampler(server, Anthropic(how) if server.form == "anthropic" else Chat(how))


def ask(of: ServerSampler, what: Ask = ASK) -> bytes:
    async def run() -> bytes:
        async with of:
            return await of.ask(what)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "rate limited"), ("503", "overloaded"), ("500", "server error"), ("reset before", "connection lost"),
        ("reset after", "connection lost"), ("hang", "too slow"), ("drip", "too slow"), ("huge", "too large"),
    ],
)  # fmt: skip
def test_every_misbehaviour_has_its_name(fault: str, kind: str) -> None:
    with loopback(faults=1, kinds=fault) as server, pytest.raises(Failure) as said:
        ask(sampler(server.url))
    assert said.value.kind == kind
    assert said.value.retry_after == (0.1 if fault == "429" else None)


@pytest.mark.parametrize("fault", ["cut json", "empty", "wrong type"])
def test_a_reply_that_cannot_be_read_is_kept_first(fault: str) -> None:
    with loopback(faults=1, kinds=fault) as server:
        of = sampler(server.url)
        raw = ask(of)
    with pytest.raises(Failure, match="unreadable"):
        of.read(raw)


def test_a_redirect_is_not_followed() -> None:
    with loopback() as server, pytest.raises(Failure) as said:
        ask(sampler(f"{server.root}/redirect"))
    assert (said.value.kind, said.value.status) == ("wrong address", 307)


def test_nobody_there_is_no_connection() -> None:
    with pytest.raises(Failure) as said:
        ask(sampler("http://127.0.0.1:9/v1"))
    assert said.value.kind == "no connection"


def test_anthropic_messages_are_spoken() -> None:
    with loopback() as server:
        of = sampler(server.url, form="anthropic")
        system = {"role": "system", "content": "be brief"}
        answer = of.read(ask(of, Ask(messages=(system, *ASK.messages), count=1, max_tokens=9, seed=0, identity="a")))
    assert answer.answers[0].reasoning == "well" and answer.answers[0].text and answer.usage


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1",
        "fd00:ec2::254",
    ],
)  # fmt: skip
def test_link_local_and_metadata_addresses_are_forbidden(address: str) -> None:
    assert forbidden(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.2", "8.8.8.8"])
def test_other_addresses_are_not(address: str) -> None:
    assert not forbidden(address)


@pytest.mark.parametrize("url", ["http://169.254.169.254/v1", "http://[fe80::1]/v1", "http://[::ffff:169.254.169.254]"])
def test_a_forbidden_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InputError, match="never asks"):
        sampler(url)


def test_a_name_that_leads_to_a_forbidden_address_is_refused_on_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def lookup(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(Failure) as said:
        ask(sampler("http://teacher.example/v1"))
    assert said.value.kind == "wrong address" and asked == ["teacher.example"]


@pytest.mark.parametrize("host", ["2852039166", "0xA9FEA9FE", "169.254.43518"])
def test_an_address_in_disguise_is_not_connected_to(host: str) -> None:
    with pytest.raises(Failure):
        ask(sampler(f"http://{host}/v1"))


def test_a_key_goes_over_https_or_to_this_machine_only() -> None:
    check_address("http://127.0.0.1:8000/v1", with_key=True)
    check_address("http://localhost:8000/v1", with_key=True)
    check_address("https://example.org/v1", with_key=True)
    check_address("http://192.0.2.1/v1", with_key=False)
    with pytest.raises(InputError, match="unencrypted"):
        check_address("http://192.0.2.1/v1", with_key=True)


def test_a_key_does_not_show_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-hidden")
    key = find_key(Server(kind="server", url="http://127.0.0.1:9/v1", key_env="TEACHER_KEY"))
    assert "hidden" not in f"{key!r} {key!s} {vars(Key)}" and key.headers("openai") == {
        "Authorization": "Bearer sk-hidden"
    }
    assert key.struck_out(b"no sk-hidden here") == b"no *** here"
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(InputError, match="TEACHER_KEY holds no key"):
        find_key(Server(kind="server", url="http://127.0.0.1:9/v1", key_env="TEACHER_KEY"))
    with pytest.raises(InputError, match="cannot be read"):
        find_key(Server(kind="server", url="http://127.0.0.1:9/v1", key_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    "url", ["example.org", "file:///etc/passwd", "http://", "https://a b/", "http://x?y=1", "http://u@x"]
)
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Server(kind="server", url=url)


def test_a_parameter_is_left_out_or_sent_under_another_name() -> None:
    constant = {"model": "m", "temperature": None, "top_p": 0.5, "seed": None}
    for form in (Chat(constant), Continuation(constant), TopLogprobs(constant, ("a", "b"))):
        assert not {"temperature", "seed"} & form.body(replace(ASK, prompt="why?")).keys()
    assert "temperature" not in Anthropic(constant).body(ASK)
    assert renamed({"seed": 3, "top_p": 0.5}, {"seed": "random_seed"}) == {"random_seed": 3, "top_p": 0.5}


def test_headers_and_queries_of_ones_own_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", "Bearer azure-hidden")
    own = {"headers": {"api-key": {"env": "AZURE_KEY"}, "x-tier": "low"}, "query": {"api-version": "2024-10-21"}}
    key = find_key(Server.model_validate({"kind": "server", "url": "https://x.example/v1", **own}))
    assert key.headers("openai") == {"api-key": "Bearer azure-hidden", "x-tier": "low"}
    assert key.query == {"api-version": "2024-10-21"} and "azure" not in repr(key)
    assert key.struck_out(b"no azure-hidden of low 2024-10-21") == b"no *** of low 2024-10-21"
    with pytest.raises(InputError, match="unencrypted"):
        sampler("http://192.0.2.1/v1", query={"sig": FromEnvironment(env="AZURE_KEY")})
    monkeypatch.delenv("AZURE_KEY")
    with pytest.raises(InputError, match=r"'headers.api-key': the environment variable AZURE_KEY holds no text"):
        find_key(Server.model_validate({"kind": "server", "url": "https://x.example/v1", **own}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"headers": {"api-key": "sk-1"}}, r"'api-key' may hold a secret: name .*\{env: API_KEY\}"),
        ({"query": {"access_token": "x"}}, r"'access_token' may hold a secret"),
        ({"headers": {"x": "a\nb"}}, "'x' is no text of one line"),
        ({"headers": {"x y": "a"}}, "x y"),
        ({"names": {"seed": ""}}, "names"),
    ],
)
def test_a_secret_in_clear_or_a_broken_header_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Server.model_validate({"kind": "server", "url": "https://x.example/v1", **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": None}, r"under 'parameters': \{temperature: null\}"),
        ({"parameters": {"seed": 3}}, "may not set 'seed', only leave it out"),
        ({"parameters": {"top_p": 0.5}}, "'generate.top_p' sets it"),
        ({"parameters": {"max_tokens": None}}, "may not set 'max_tokens'"),
    ],
)
def test_what_a_parameter_may_say(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Generate.model_validate(given)
    assert Generate.model_validate({"parameters": {"seed": None, "top_p": None, "effort": "low"}})


def test_requests_a_minute_are_kept(tmp_path: Path) -> None:
    from data_runs import write_recipe

    from potstill.pipeline import Run
    from potstill.recipe import load_recipe

    engine: Mapping[str, Any] = {"requests_per_minute": 600.0}
    with loopback() as server:
        start = time.monotonic()
        Run(load_recipe(write_recipe(tmp_path, server.url, prompts=30, engine=engine)), tmp_path / "run").generate()
        assert time.monotonic() - start >= 1.9  # ten at once, then ten per second
        assert server.attempts() == 30
