"""A .gguf teacher in this process: llama.cpp's continuous batching through xllamacpp, asked without HTTP."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from potstill.engines.chat import Form
from potstill.engines.sampler import Ask, Failure, Reading
from potstill.errors import MissingEnvironment
from potstill.recipe.teacher import Gguf


class GgufSampler:
    """`slots` answers are written at once; the weights are loaded on entering."""

    def __init__(self, model: Path, engine: Gguf, form: Form) -> None:
        try:
            import xllamacpp  # the extra `gguf`  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingEnvironment(
                "a teacher of kind 'gguf' needs the package xllamacpp", way_out="pip install 'potstill[gguf]'"
            ) from None
        self._llama: Any = xllamacpp
        self._model, self._engine, self._form = model, engine, form

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self._engine.slots, thread_name_prefix="gguf")
        self._server = await asyncio.get_running_loop().run_in_executor(self._threads, self._load)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        del self._server

    async def ask(self, ask: Ask) -> bytes:
        chats = self._form.path == "/chat/completions"
        answer = self._server.handle_chat_completions if chats else self._server.handle_completions
        reply = await asyncio.get_running_loop().run_in_executor(self._threads, answer, self._form.body(ask))
        if error := reply.get("error"):
            refused = error.get("code", 500) == 400
            raise Failure("refused" if refused else "server error", str(error.get("message")), status=error.get("code"))
        return json.dumps({**reply, "model": self._model.name}, ensure_ascii=False).encode()

    def read(self, raw: bytes) -> Reading:
        return self._form.read(raw)

    def _load(self) -> Any:
        settings = self._llama.CommonParams()
        settings.model.path = str(self._model)
        settings.n_parallel = self._engine.slots
        settings.n_ctx = self._engine.slots * self._engine.context
        settings.cpuparams.n_threads = self._engine.threads
        settings.cpuparams_batch.n_threads = self._engine.threads
        settings.verbosity = -1
        settings.port = 0  # it listens on the loopback interface, on a port nobody is told
        try:
            return self._llama.Server(settings)
        except RuntimeError as error:
            raise MissingEnvironment(
                f"llama.cpp does not load '{self._model}': {error}", way_out="give a whole .gguf file that it supports"
            ) from None
