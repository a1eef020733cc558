"""A `transformers` teacher in this process that writes: answers are batched by length, and what all prompts of a batch
begin with is computed once and kept.

Dimension key: B answers in a batch, L tokens, P shared prefix, W tokens written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, cast

import torch

from potstill.data_recipe import Generate
from potstill.engines.local import KeptPrefix, shared_prefix
from potstill.engines.reply import MARKS, opened_by, read_openai
from potstill.engines.sampler import Ask, Failure, Reading
from potstill.models.load import codec_of, load
from potstill.models.locate import locate
from potstill.records import Message
from potstill.teacher_recipe import Local
from potstill.text.tokens import Ids

_WORTH_KEEPING = 16  # tokens of a shared prefix
_OPENING = 16  # tokens at the end of a prompt among which an opening tag of reasoning stands


class LocalSampler:
    """Asks gather in a queue; one thread takes `slots` of similar length at a time."""

    def __init__(self, model: str, revision: str | None, how: Generate, engine: Local) -> None:
        self._loaded = load(locate(model), revision=revision)
        self._codec = codec_of(self._loaded.folder, engine.template, name="teacher")
        self._how, self._slots = how, engine.slots
        self._waiting: list[tuple[Ids, Ask, asyncio.Future[bytes]]] = []
        self._kept: KeptPrefix | None = None
        config = self._loaded.model.generation_config
        ends = config.eos_token_id if config else None
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        special = self._codec.tokenizer.get_added_tokens_decoder().items()
        self._unspoken = {i for i, t in special if t.special and not any(t.content in mark for mark in MARKS)}
        self._reads = int(getattr(self._loaded.model.config, "max_position_embeddings", 1 << 30))

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
        ids = self._codec.prefix([Message.from_dict(m) for m in ask.messages])
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
            self._waiting.sort(key=lambda one: (len(one[0]), one[1].identity))
            batch, self._waiting = self._waiting[: self._slots], self._waiting[self._slots :]
            if not self._waiting:
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

    @torch.inference_mode()
    def _write(self, batch: Sequence[tuple[Ids, Ask, asyncio.Future[bytes]]]) -> list[bytes]:
        prompts = [ids for ids, _, _ in batch]
        prefix = shared_prefix(prompts)
        prefix = prefix if len(prefix) >= _WORTH_KEEPING and len(prompts) > 1 else ()
        longest = max(map(len, prompts))
        if prefix and (self._kept is None or self._kept.prefix != prefix):
            self._kept = KeptPrefix(self._loaded.model, prefix)
        cache = self._kept.cache(len(prompts)) if prefix and self._kept else None
        # The prefix first, then padding, then what is each prompt's own: positions count what the mask lets through.
        rows = [[*prefix, *[0] * (longest - len(p)), *p[len(prefix) :]] for p in prompts]
        mask = [[1] * len(prefix) + [0] * (longest - len(p)) + [1] * (len(p) - len(prefix)) for p in prompts]
        torch.manual_seed(batch[0][1].seed)
        sampling = {"temperature": self._how.temperature, "top_p": self._how.top_p, "top_k": 0}
        model = cast(Any, self._loaded.model)
        written_BL = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            past_key_values=cache,
            max_new_tokens=max(ask.max_tokens for _, ask, _ in batch),
            do_sample=self._how.temperature > 0,
            pad_token_id=self._ends[0] if self._ends else 0,
            **(sampling if self._how.temperature > 0 else {}),
        )
        answers = written_BL[:, longest:].tolist()
        return [self._reply(ids, ask, answer) for (ids, ask, _), answer in zip(batch, answers, strict=True)]

    def _reply(self, ids: Ids, ask: Ask, written: Sequence[int]) -> bytes:
        end = next((i for i, token in enumerate(written) if token in self._ends), None)
        stopped = end is not None and end < ask.max_tokens
        answer = list(written[: end if stopped else ask.max_tokens])
        choice = {
            "message": {"content": self._text(ids, answer)},
            "finish_reason": "stop" if stopped else "length",
        }
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer) + stopped}
        return json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=False).encode()

    def _text(self, prefix: Ids, answer: Sequence[int]) -> str:
        """Without special tokens, but for those that open or close reasoning, and with the tag that the template itself
        opened: the reply is split there."""
        decode = self._codec.tokenizer.decode
        spoken = [token for token in answer if token not in self._unspoken]
        opened = opened_by(decode(list(prefix[-_OPENING:]), skip_special_tokens=False))
        return opened + decode(spoken, skip_special_tokens=False)
