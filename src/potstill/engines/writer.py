"""A `transformers` teacher in this process that writes, its answers side by side in slots."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from potstill.engines.reply import Spoken, read_openai
from potstill.engines.sampler import Ask, Failure, Reading
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout, Rollouts
from potstill.errors import InputError
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.recipe.generate import Generate
from potstill.recipe.teacher import Local
from potstill.records import Message
from potstill.text.tokens import Ids

_ROOM = 256  # a slot holds a multiple of so many tokens


class LocalSampler:
    """Asks gather in a queue; one thread takes all that wait. What an ask draws depends on its own seed alone."""

    def __init__(self, model: str, revision: str | None, how: Generate, engine: Local) -> None:
        self._loaded = load(locate(model), revision=revision)
        self._codec = codec_of(self._loaded.folder, engine.template, name="teacher")
        self._sampling = Sampling(temperature=how.temperature, top_p=how.top_p)
        self._slots, self._capacity = engine.slots, _ROOM
        self._waiting: list[tuple[Ids, Ask, asyncio.Future[bytes]]] = []
        config = self._loaded.model.generation_config
        ends = config.eos_token_id if config else None
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._spoken = Spoken(self._codec)
        self._reads = int(getattr(self._loaded.model.config, "max_position_embeddings", 1 << 30))
        self._rollouts = self._slots_of(self._capacity)

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local")
        self._arrived = asyncio.Event()
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, ask: Ask) -> bytes:
        messages = [Message.from_dict(m) for m in ask.messages]
        try:
            ids = self._codec.question(messages, tools=ask.tools)
        except InputError as why:
            raise Failure("refused", why.problem) from None
        if len(ids) + ask.max_tokens > self._reads:
            raise Failure("refused", f"{len(ids)} tokens of prompt and {ask.max_tokens} of answer do not fit")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((ids, ask, future))
        self._arrived.set()
        return await future

    def read(self, raw: bytes) -> Reading:
        return read_openai(raw)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(0.005)  # what comes together is batched together
            batch, self._waiting = self._waiting, []
            self._arrived.clear()
            try:
                written = await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
            except Exception as error:  # whatever the model raises: who waits must hear it, or waits for ever
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), reply in zip(batch, written, strict=True):
                if not future.done():
                    future.set_result(reply)

    def _write(self, batch: Sequence[tuple[Ids, Ask, asyncio.Future[bytes]]]) -> list[bytes]:
        needed = max(len(ids) + ask.max_tokens for ids, ask, _ in batch)
        if needed > self._capacity:
            self._capacity = -(-needed // _ROOM) * _ROOM
            self._rollouts = self._slots_of(self._capacity)
        written = self._rollouts.roll_out(
            [ids for ids, _, _ in batch],
            sampling=self._sampling,
            max_new_tokens=[ask.max_tokens for _, ask, _ in batch],
            numbers=[ask.seed for _, ask, _ in batch],
        )
        return [self._reply(ids, answer) for (ids, _, _), answer in zip(batch, written, strict=True)]

    def _slots_of(self, capacity: int) -> Rollouts:
        return Rollouts(self._loaded.model, slots=self._slots, capacity_tokens=capacity, end_ids=self._ends)

    def _reply(self, prompt: Ids, written: Rollout) -> bytes:
        answer = written.ids[:-1] if written.finish == "stop" else written.ids
        choice = {
            "message": {"content": self._spoken(prompt, answer)},
            "finish_reason": written.finish,
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(written.ids)}
        return json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=False).encode()
