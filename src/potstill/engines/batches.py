"""Provider batch files in OpenAI's form: upload the requests, wait, download the replies; about half the price.

The provider remembers what a killed process forgot: batches carry the model's name in their metadata and every request
its identity, so a request that lies in a batch already is waited for and not sent again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Self, cast

import aiohttp

from potstill.engines.chat import Chat, renamed
from potstill.engines.errors_said import failure_of
from potstill.engines.http import Connection
from potstill.engines.reply import read_openai
from potstill.engines.sampler import Ask, Failure, Reading
from potstill.recipe.generate import Generate
from potstill.recipe.teacher import Batches, Teacher

_Waiting = tuple[Ask, asyncio.Future[bytes]]
_MARK = "potstill"
_OVER = ("completed", "failed", "expired", "cancelled")
_MAX_FILE = 1 << 30  # bytes; providers stop at a fifth of it
_GATHER = 0.2  # seconds without a new request after which a file is closed


class BatchSampler(Connection):
    """`ask` returns when the batch that holds it is done: minutes, or a day."""

    def __init__(self, writer: Teacher, how: Generate, batches: Batches) -> None:
        super().__init__(batches, limit=_MAX_FILE)
        self._batches = batches
        self._constant: dict[str, object] = {
            "model": writer.model,
            "temperature": how.temperature,
            "top_p": how.top_p,
            **how.parameters,
        }
        self._new: dict[str, _Waiting] = {}
        self._awaited: dict[str, _Waiting] = {}
        self._known: dict[str, list[str]] = {}
        """Identity of a request -> the batches that hold it and have not been heard."""
        self._earlier: set[str] = set()
        """Batches of earlier processes: what they refuse may be asked otherwise now."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._remember()
        self._tasks = {asyncio.create_task(self._gather())}
        self._followed: set[str] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().__aexit__()

    async def ask(self, ask: Ask) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._place(ask, future)
        return await future

    def read(self, raw: bytes) -> Reading:
        return read_openai(raw)

    def _place(self, ask: Ask, future: asyncio.Future[bytes]) -> None:
        """Wait for the batch that holds the request, else for the next one."""
        if batches := self._known.get(ask.identity):
            self._awaited[ask.identity] = (ask, future)
            self._follow(batches[-1])
        else:
            self._new[ask.identity] = (ask, future)

    # what is sent

    async def _gather(self) -> None:
        """Close a file when it is full, or when nothing new has come for a moment."""
        while True:
            before = len(self._new)
            await asyncio.sleep(_GATHER)
            if self._new and (len(self._new) == before or len(self._new) >= self._batches.requests_per_file):
                taken = list(self._new.items())[: self._batches.requests_per_file]
                for identity, waiting in taken:
                    del self._new[identity]
                    self._awaited[identity] = waiting
                await self._send([ask for _, (ask, _) in taken])

    async def _send(self, asks: list[Ask]) -> None:
        lines = [json.dumps(self._line(ask), ensure_ascii=False) for ask in asks]
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", "\n".join(lines).encode(), filename="requests.jsonl")
        try:
            file = await self._call("POST", "/files", data=form)
            asked = {
                "input_file_id": _said(file, "id"),
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "metadata": {_MARK: str(self._constant["model"])},
            }
            batch = _said(await self._call("POST", "/batches", json=asked), "id")
        except Failure as failure:
            for ask in asks:
                self._fail(ask.identity, failure)
            return
        for ask in asks:
            self._known.setdefault(ask.identity, []).append(batch)
        self._follow(batch)

    def _line(self, ask: Ask) -> dict[str, object]:
        body = renamed(Chat(self._constant, self._batches.limit_field).body(ask), self._batches.names)
        return {"custom_id": ask.identity, "method": "POST", "url": "/v1/chat/completions", "body": body}

    # what comes back

    def _follow(self, batch: str) -> None:
        if batch not in self._followed:
            self._followed.add(batch)
            self._tasks.add(asyncio.create_task(self._wait_for(batch)))

    async def _wait_for(self, batch: str) -> None:
        members = [identity for identity, held_by in self._known.items() if batch in held_by]
        over = False
        try:
            while _said(state := await self._call("GET", f"/batches/{batch}"), "status") not in _OVER:
                await asyncio.sleep(self._batches.poll_seconds)
            for name in ("output_file_id", "error_file_id"):
                if state.get(name):
                    self._deliver(await self._raw("GET", f"/files/{state[name]}/content"), batch)
            left, over = Failure("server error", f"batch {state['status']} without a reply to this request"), True
        except Failure as failure:
            left = failure
        finally:
            self._followed.discard(batch)
        for identity in members:
            self._fail(identity, left, said_no=batch if over else None)

    def _deliver(self, lines: bytes, batch: str) -> None:
        for line in lines.splitlines():
            try:
                row = json.loads(line)
                identity, response = row["custom_id"], row.get("response") or {}
                body = json.dumps(response.get("body") or {}, ensure_ascii=False).encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # whoever waits for it is told that there is no reply
            if response.get("status_code") != 200:
                self._fail(identity, failure_of(int(response.get("status_code") or 500), body), said_no=batch)
            elif (waiting := self._awaited.pop(identity, None)) and not waiting[1].done():
                self._heard(identity, batch)
                waiting[1].set_result(body)

    def _fail(self, identity: str, failure: Failure, *, said_no: str | None = None) -> None:
        """A request brought no answer; `said_no`: the batch that will not bring one either."""
        if not (waiting := self._awaited.pop(identity, None)) or waiting[1].done():
            return
        self._heard(identity, said_no)
        if said_no in self._earlier:
            self._place(*waiting)
        else:
            waiting[1].set_exception(failure)

    def _heard(self, identity: str, batch: str | None) -> None:
        """Asked once more, as what cannot be read is, the request goes into another batch."""
        if batch in (held_by := self._known.get(identity, [])):
            held_by.remove(batch)

    async def _remember(self) -> None:
        """Which requests lie in batches that an earlier process made, however many pages the provider lists."""
        after = ""
        while True:
            page = await self._call("GET", f"/batches?limit=100{after}")
            for batch in page.get("data", []):
                ours = (batch.get("metadata") or {}).get(_MARK) == self._constant["model"]
                if ours and batch["status"] not in ("failed", "expired", "cancelled"):
                    for line in (await self._raw("GET", f"/files/{batch['input_file_id']}/content")).splitlines():
                        self._known.setdefault(str(json.loads(line)["custom_id"]), []).append(str(batch["id"]))
                    self._earlier.add(str(batch["id"]))
            if not page.get("has_more") or not page.get("data"):
                return
            after = f"&after={page['data'][-1]['id']}"

    async def _call(self, method: str, path: str, **body: Any) -> Mapping[str, Any]:
        try:
            return cast(Mapping[str, Any], json.loads(await self._raw(method, path, **body)))
        except ValueError:
            raise Failure("unreadable", f"{path}: not JSON") from None

    async def _raw(self, method: str, path: str, **body: Any) -> bytes:
        response, said = await self.exchange(method, self._batches.url + path, **body)
        if response.status != 200:
            raise failure_of(response.status, said)
        return said


def _said(reply: Mapping[str, Any], name: str) -> str:
    """What a reply must say. Raises Failure, since a task that dies of a KeyError leaves its requests waiting."""
    if not reply.get(name):
        raise Failure("unreadable", f"the provider's reply has no '{name}'")
    return str(reply[name])
