"""A teacher on the loopback interface that misbehaves on purpose and keeps its own books.

    python loopback.py --delay 0.02 --faults 0.3 --seed 7

prints its port and serves until its standard input closes. Answers are a pure function of what was asked, so two runs
can be compared byte for byte. `GET /ledger` tells what it was asked and what it would bill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import random
import subprocess
import sys
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manners import MANNERS

FAULTS = (
    "429", "503", "500", "reset before", "reset after", "hang", "drip", "cut json", "wrong type", "huge", "empty",
)  # fmt: skip
BILLED = {"ok", "reset after", "hang", "drip", "cut json", "wrong type", "huge", "empty"}
WORDS = tuple("film plot actor scene light music quiet loud slow fast warm cold clever dull brave small".split())  # noqa: SIM905


class Books:
    """Every request by its idempotency key: what was done to it, and the tokens it would be billed for."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = defaultdict(list)
        self.prompt_tokens = self.completion_tokens = 0
        self.most_at_once = self.at_once = 0
        self.manners: dict[str, list[int]] = {}
        self.files: list[str] = []
        self.batches: list[dict[str, Any]] = []


class Teacher(asyncio.Protocol):
    def __init__(self, options: argparse.Namespace, books: Books) -> None:
        self.options, self.books = options, books
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < whole:
                return
            body, self.buffer = self.buffer[end + 4 : whole], self.buffer[whole:]
            self.handle(lines[0], headers, body)

    def handle(self, line: str, headers: dict[str, str], body: bytes) -> None:
        if line.startswith("GET /ledger"):
            self.reply(200, json.dumps(vars(self.books)).encode())
        elif line.startswith("GET /v1/models"):
            self.reply(200, b'{"data": [{"id": "loopback"}]}')
        elif "/v1/files" in line or "/v1/batches" in line:
            self.batch(line, headers, body)
        elif line.startswith("POST /manners/"):
            self.be(line.split()[1], headers, json.loads(body))
        elif line.startswith("POST /redirect"):
            self.reply(307, b"", extra="Location: http://127.0.0.1:9/v1/chat/completions\r\n")
        elif line.startswith(("POST /v1/chat/completions", "POST /v1/messages", "POST /v1/completions")):
            self.teach(line, headers, body)
        else:
            self.reply(404, b'{"error": {"message": "no such path"}}')

    def batch(self, line: str, headers: dict[str, str], body: bytes) -> None:
        """Batch files: a batch is worked through when it has been asked about often enough."""
        books, path = self.books, line.split()[1]
        if line.startswith("POST /v1/files"):
            boundary = b"--" + headers["content-type"].partition("boundary=")[2].encode()
            part = next(p for p in body.split(boundary) if b'name="file"' in p)
            books.files.append(part.partition(b"\r\n\r\n")[2].rstrip(b"\r\n").decode())
            self.reply(200, json.dumps({"id": f"file-{len(books.files) - 1}"}).encode())
        elif line.startswith("POST /v1/batches"):
            asked = json.loads(body)
            books.batches.append({**asked, "id": f"batch-{len(books.batches)}", "status": "in_progress", "polls": 0})
            self.reply(200, b"{}" if self.options.nameless else json.dumps(books.batches[-1]).encode())
        elif path.startswith("/v1/batches?"):
            after = path.partition("after=batch-")[2]
            start = int(after) + 1 if after else 0
            page = books.batches[start : start + self.options.page]
            more = start + len(page) < len(books.batches)
            self.reply(200, json.dumps({"data": page, "has_more": more}).encode())
        elif path.startswith("/v1/batches/"):
            batch = books.batches[int(path.rpartition("-")[2])]
            batch["polls"] += 1
            if batch["polls"] <= self.options.deaf:
                self.transport.abort()
                return
            if batch["polls"] >= self.options.polls and batch["status"] == "in_progress":
                self.work_through(batch)
            self.reply(200, json.dumps(batch).encode())
        else:
            self.reply(200, books.files[int(path.split("/")[-2].rpartition("-")[2])].encode())

    def work_through(self, batch: dict[str, Any]) -> None:
        books, rows = self.books, list[str]()
        for line in books.files[int(batch["input_file_id"].rpartition("-")[2])].splitlines():
            asked = json.loads(line)
            identity = asked["custom_id"]
            fault = self.fault(identity, len(books.seen[identity]))
            if asked["body"].get("max_tokens", 0) > self.options.most_tokens:
                fault = "400"
            books.seen[identity].append(fault)
            status = {"ok": 200, "empty": 200, "400": 400}.get(fault, 500)
            body = {"ok": _openai(asked["body"]), "empty": {"choices": []}}.get(fault, {"error": {"message": "no"}})
            rows.append(json.dumps({"custom_id": identity, "response": {"status_code": status, "body": body}}))
        books.files.append("\n".join(rows))
        batch |= {"status": "completed", "output_file_id": f"file-{len(books.files) - 1}"}

    def teach(self, line: str, headers: dict[str, str], body: bytes) -> None:
        identity = headers.get("idempotency-key", "")
        asked = json.loads(body)
        fault = self.fault(identity, len(self.books.seen[identity]))
        if self.options.key and self.options.key not in (
            headers.get("authorization", "") + headers.get("x-api-key", "")
        ):
            fault = "401"
        if asked.get("max_tokens", 0) > self.options.most_tokens or not _said(asked) or "REFUSE" in _said(asked):
            fault = "400"
        self.books.seen[identity].append(fault)
        self.books.at_once += 1
        self.books.most_at_once = max(self.books.most_at_once, self.books.at_once)
        delay = 0.0 if fault in ("429", "503", "500", "400", "401") else self.options.delay
        anthropic = line.startswith("POST /v1/messages")
        asyncio.get_running_loop().call_later(delay, self.answer, fault, asked, anthropic, headers)

    def be(self, path: str, headers: dict[str, str], asked: dict[str, Any]) -> None:
        """Behave as the manner in the path does, and keep its own books: tokens told and untold."""
        whose = urllib.parse.unquote(path.split("/")[2])
        seen = self.books.seen[f"{whose} {headers['idempotency-key']}"]
        said = MANNERS[whose.partition(" / ")[0]](asked, {**headers, "path": path}, len(seen))
        seen.append(said.how)
        book = self.books.manners.setdefault(whose, [0, 0, 0, 0])
        book[:] = [a + b for a, b in zip(book, (*said.told, *said.untold), strict=True)]
        body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        match said.how:
            case "whole":
                self.reply(said.status, body, kind=said.kind, extra=said.extra)
            case "drip":
                self.drip(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n" + body)
            case "reset":
                self.transport.abort()
            case "hang":
                pass

    def fault(self, identity: str, attempt: int) -> str:
        draw = random.Random(f"{self.options.seed} {identity} {attempt}")
        if draw.random() >= self.options.faults:
            return "ok"
        return draw.choice(self.options.kinds.split(",") if self.options.kinds else FAULTS)

    def answer(  # noqa: C901
        self, fault: str, asked: dict[str, Any], anthropic: bool, headers: dict[str, str]
    ) -> None:
        self.books.at_once -= 1
        if fault == "400":
            self.reply(400, b'{"error": {"message": "these messages are not answered", "code": "bad_request"}}')
            return
        reply = _anthropic(asked) if anthropic else _openai(asked)
        if self.options.choices:
            _choose(reply, asked, self.options.choices.split(","), self.options.logprobs)
        if self.options.judge:
            said = _judged(self.options.judge, str(asked["messages"][-1]["content"]))
            reply["choices"][0]["message"]["content"] = said
        if fault in BILLED:
            prompt, completion = _usage(asked, reply)
            self.books.prompt_tokens += prompt
            self.books.completion_tokens += completion
        said = json.dumps(reply).encode()
        match fault:
            case "ok":
                self.reply(200, said)
            case "429":
                self.reply(
                    429, b'{"error": {"message": "slow down"}}', extra=f"Retry-After: {self.options.retry_after}\r\n"
                )
            case "401" | "500" | "503":
                message = f"no: {headers.get('authorization', '')}"
                self.reply(int(fault), json.dumps({"error": {"message": message}}).encode())
            case "reset before" | "reset after":
                self.transport.abort()
            case "hang":
                pass
            case "drip":
                self.drip(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n" + said)
            case "cut json":
                self.reply(200, said[: len(said) // 2])
            case "wrong type":
                self.reply(200, b"<html>" + said, kind="text/html")
            case "huge":
                self.reply(200, b'{"choices": "' + b"x" * self.options.huge + b'"}')
            case _:
                self.reply(200, b'{"choices": []}')

    def drip(self, left: bytes) -> None:
        if left and not self.transport.is_closing():
            self.transport.write(left[:1])
            asyncio.get_running_loop().call_later(0.05, self.drip, left[1:])

    def reply(self, status: int, body: bytes, *, kind: str | None = "application/json", extra: str = "") -> None:
        extra += f"Content-Type: {kind}\r\n" if kind else ""
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)


def _texts(asked: dict[str, Any]) -> list[str]:
    """`n` answers, each a function of the conversation, the sampling and the seed."""
    read = asked.get("messages") or asked["prompt"]
    what = json.dumps([read, asked.get("temperature"), asked.get("seed")], sort_keys=True)
    texts: list[str] = []
    for i in range(asked.get("n", 1)):
        draw = random.Random(hashlib.sha256(f"{what} {i}".encode()).digest())
        texts.append(" ".join(draw.choices(WORDS, k=draw.randint(3, 12))))
    return texts


def _said(asked: dict[str, Any]) -> str:
    """What is asked last: a chat's last turn, or the whole text."""
    if "prompt" in asked:
        return str(asked["prompt"])
    return str(asked["messages"][-1]["content"]) if asked["messages"] else ""


def _choose(reply: dict[str, Any], asked: dict[str, Any], choices: list[str], shape: str) -> None:
    """Answer with one of the choices, and list the first tokens in the shape that the server is said to have."""
    what = hashlib.sha256(json.dumps([_said(asked), asked.get("seed") if not _lists(asked) else 0]).encode()).digest()
    draw = random.Random(what)
    weights = [draw.random() for _ in choices]
    total = 1.25 * sum(weights)
    listed = {f" {choice}": math.log(weight / total) for choice, weight in zip(choices, weights, strict=True)}
    listed[" Hm"] = math.log(0.1)
    for choice in reply["choices"]:
        text = draw.choices(choices, weights)[0]
        choice.pop("message", None) if "prompt" in asked else choice["message"].update(content=text)
        choice["text"] = text
        if not _lists(asked) or shape == "none":
            continue
        content = [{"token": token, "logprob": logprob} for token, logprob in listed.items()]
        if "messages" in asked or shape == "llama.cpp":
            choice["logprobs"] = {"content": [{**content[0], "top_logprobs": content}]}
        else:
            choice["logprobs"] = {"tokens": [" Hm"], "token_logprobs": [-2.3], "top_logprobs": [listed]}


def _lists(asked: dict[str, Any]) -> bool:
    return bool(asked.get("logprobs"))


def _openai(asked: dict[str, Any]) -> dict[str, Any]:
    limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or 1 << 30
    choices: list[dict[str, Any]] = []
    for i, text in enumerate(_texts(asked)):
        words = text.split()
        finish = "length" if len(words) > limit else "stop"
        message = {"role": "assistant", "content": " ".join(words[:limit])}
        choices.append({"index": i, "message": message, "finish_reason": finish})
    reply = {"id": "x", "object": "chat.completion", "model": asked["model"], "choices": choices}
    prompt, completion = _usage(asked, reply)
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**reply, "created": 1, "usage": total}


def _judged(how: str, question: str) -> str:
    """A judge who likes long answers, always says A, or says nothing that can be read. It finds the parts by the mark
    that every part begins with."""
    mark = question[question.index("begin with [") + len("begin with ") :].split()[0]
    parts = [part.partition("\n")[2].strip("\n") for part in question.split(f"\n{mark} ")[1:-1]]
    sizes = [len(part.split()) for part in parts[1:]]
    if how == "unreadable":
        return "Score: 10 out of 10\nBetter: both"
    if len(sizes) == 1:
        return f"It has {sizes[0]} words.\nScore: {min(10, sizes[0])}"
    best = "tie" if sizes[0] == sizes[1] else "A" if sizes[0] > sizes[1] else "B"
    return f"Sizes {sizes}.\nBetter: {'A' if how == 'first' else best}"


def _anthropic(asked: dict[str, Any]) -> dict[str, Any]:
    text = _texts(asked)[0]
    reply: dict[str, Any] = {"content": [{"type": "thinking", "thinking": "well"}, {"type": "text", "text": text}]}
    prompt, completion = _usage(asked, reply)
    return {**reply, "stop_reason": "end_turn", "usage": {"input_tokens": prompt, "output_tokens": completion}}


def _usage(asked: dict[str, Any], reply: dict[str, Any]) -> tuple[int, int]:
    turns = asked.get("messages") or [{"content": asked["prompt"]}]
    prompt = sum(len(str(m["content"]).split()) + 3 for m in turns)
    if "choices" in reply:
        texts = (c["message"]["content"] if "message" in c else c["text"] for c in reply["choices"])
        return prompt, sum(len(text.split()) for text in texts)
    return prompt, sum(len(str(part.get("text", "")).split()) for part in reply["content"])


class Loopback:
    """A running teacher, as a test sees it."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def ledger(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.root}/ledger", timeout=30) as reply:
            return json.loads(reply.read())

    def attempts(self) -> int:
        return sum(map(len, self.ledger()["seen"].values()))


@contextmanager
def loopback(**options: object) -> Generator[Loopback]:
    """Start one in a process of its own; it ends with this block, or with this process."""
    words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen(
        [sys.executable, str(Path(__file__)), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        try:
            yield Loopback(int(child.stdout.readline()))
        finally:
            child.stdin.close()
            child.wait(timeout=10)


async def serve(options: argparse.Namespace) -> None:
    books = Books()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Teacher(options, books), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a good answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--kinds", default="", help="which faults, by comma; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge", type=int, default=1 << 20, help="bytes of a huge reply")
    parser.add_argument("--retry-after", default="0.1")
    parser.add_argument("--polls", type=int, default=2, help="how often a batch is asked about before it is done")
    parser.add_argument("--deaf", type=int, default=0, help="how often asking about a batch is cut off")
    parser.add_argument("--page", type=int, default=100, help="how many batches are listed at once")
    parser.add_argument("--nameless", type=int, default=0, help="1: a new batch's id is not told")
    parser.add_argument("--most-tokens", type=int, default=1 << 30, help="a higher max_tokens is refused")
    parser.add_argument("--judge", default="", help="judge answers: long, first or unreadable")
    parser.add_argument("--choices", default="", help="answer with one of these, by comma")
    parser.add_argument("--logprobs", default="openai", help="shape of a completion's: openai, llama.cpp or none")
    parser.add_argument("--key", default="", help="the key that is asked for")
    asyncio.run(serve(parser.parse_args()))
