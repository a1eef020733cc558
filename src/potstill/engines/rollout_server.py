"""Rollouts of a model behind a vLLM server that takes its weights from a folder: `/collective_rpc` with vLLM's own
`reload_weights`, which a server has under VLLM_SERVER_DEV_MODE=1.

What it had computed of prompts with older weights is dropped with them (`/reset_prefix_cache`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.engines.http import Connection
from potstill.engines.sampler import Failure
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollout
from potstill.errors import TeacherError
from potstill.recipe.on_policy import RolloutServer
from potstill.text.tokens import Ids

_REPLY_BYTES = 64 << 20
_FIRST_ATTEMPTS = 3  # a server that was never heard is not waited for long


class ServedRollouts(Connection):
    """The model that a server has under its first name. `end_of_turn` ends an answer. Ids from `vocabulary` on stand
    for nothing: a server that draws one has to be given up."""

    def __init__(self, server: RolloutServer, *, end_of_turn: int, vocabulary: int) -> None:
        super().__init__(server, limit=_REPLY_BYTES, at_once=server.in_flight)
        self._server, self._end, self._vocabulary = server, end_of_turn, vocabulary
        self._name = ""

    def take_weights(self, folder: Path) -> None:
        """Write with the weights of a model folder from here on. Raises TeacherError where the server cannot."""
        asyncio.run(self._take(folder.resolve()))

    def roll_out(self, prompts: Sequence[Ids], *, n: int = 1, sampling: Sampling, max_new_tokens: int) -> list[Rollout]:
        """n answers per prompt, in the order of prompts and indices. Draws depend on the seed, but on the server's
        batches too: a second call may find others. `drawn_logp` is what the temperature and a top-p leave unsaid: ln q,
        which it is without them. Raises TeacherError."""
        return asyncio.run(self._roll_out(prompts, n, sampling, max_new_tokens))

    async def _take(self, folder: Path) -> None:
        base = self._server.url.removesuffix("/v1")
        async with self:
            if not self._name:
                self._name = await self._served_name(folder)
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await self._said(f"{base}/collective_rpc", reload, folder)
            dropped = await self._said(f"{base}/reset_prefix_cache", {}, folder)
        if not json.loads(dropped).get("success"):
            raise TeacherError(
                "the rollout server still holds prompts computed with older weights: it is busy with other requests",
                way_out="let nobody else use it",
            )

    async def _roll_out(self, prompts: Sequence[Ids], n: int, sampling: Sampling, max_new_tokens: int) -> list[Rollout]:
        async with self:
            found = await asyncio.gather(
                *(self._answers(i, ids, n, sampling, max_new_tokens) for i, ids in enumerate(prompts))
            )
        return [one for answers in found for one in answers]

    async def _answers(self, number: int, ids: Ids, n: int, sampling: Sampling, max_new_tokens: int) -> list[Rollout]:
        asked = {
            "model": self._name,
            "prompt": list(ids),
            "n": n,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (sampling.seed + 1_000_003 * number) % 2**63,
            "stop_token_ids": [self._end],
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        said = await self._said(f"{self._server.url}/completions", asked)
        choices = sorted(json.loads(said)["choices"], key=lambda choice: choice["index"])
        if len(choices) != n:
            raise TeacherError(f"the rollout server gave {len(choices)} answers of {n}", way_out="see its log")
        return [self._rollout(number, choice) for choice in choices]

    def _rollout(self, number: int, choice: dict[str, Any]) -> Rollout:
        ids, listed = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not ids or not listed or len(ids) != len(listed):
            raise TeacherError(
                "the rollout server gave no token ids with their log-probabilities",
                way_out="take vLLM, in a version that knows return_token_ids",
            )
        if (strange := max(ids)) >= self._vocabulary:
            raise TeacherError(
                f"the rollout server drew token {strange}, which the student's tokenizer does not have",
                way_out="leave out train.on_policy.engine: in this process such tokens are never drawn",
            )
        return Rollout(
            prompt=number,
            index=choice["index"],
            ids=tuple(ids),
            logp=tuple(listed),
            drawn_logp=tuple(listed),
            finish="stop" if ids[-1] == self._end else "length",
        )

    async def _served_name(self, folder: Path) -> str:
        """Raises TeacherError with the command that starts the server, where there is none."""
        try:
            _, said = await self.exchange("GET", f"{self._server.url}/models")
            return json.loads(said)["data"][0]["id"]
        except (Failure, ValueError, LookupError, TypeError):
            raise TeacherError(
                f"no rollout server answers at {self._server.url}",
                way_out=f"start it: {command(self._server, folder)}; then the same command again",
            ) from None

    async def _said(self, url: str, asked: dict[str, Any], folder: Path | None = None) -> bytes:
        attempts = self._server.attempts if self._name else _FIRST_ATTEMPTS
        try:
            status, said = await self.replied(url, asked, attempts=attempts)
        except Failure as failure:
            raise TeacherError(f"the rollout server: {failure}", way_out="see its log, then again") from None
        if status != 200:
            started = f"start it again: {command(self._server, folder)}" if folder else "see its log"
            raise TeacherError(
                f"the rollout server refused {url.rpartition('/')[2]}: status {status}: "
                f"{said[:300].decode(errors='replace')}",
                way_out=started,
            )
        return said


def command(server: RolloutServer, folder: Path) -> str:
    """What starts the server for a folder."""
    port = server.url.removesuffix("/v1").rpartition(":")[2]
    at = f" --port {port}" if port.isdigit() else ""
    return f"VLLM_SERVER_DEV_MODE=1 vllm serve {folder} --served-model-name student{at}"
