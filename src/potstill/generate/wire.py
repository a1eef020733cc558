"""What every request says beside its prompt: where that changes, what was refused is open again."""

from __future__ import annotations

import hashlib
import json

from potstill.prompts.stream import files_mark
from potstill.recipe import GenerationRequest
from potstill.recipe.teacher import Canned

_PACE = {
    *("deadline", "attempts", "retry_seconds", "patience", "in_flight", "start_in_flight", "requests_per_minute"),
    *("tokens_per_minute", "requests_per_file", "poll_seconds", "price_factor", "slots", "threads", "batch_tokens"),
}
"""How fast and how often is asked, and for how much: a server sees nothing of it."""


def wire(request: GenerationRequest) -> str:
    """A hash of it. Of what stands in the environment the name alone counts; sampling is in the keys of questions."""
    engine, how = request.teacher.engine, request.generate
    said = engine.model_dump(mode="json", exclude=_PACE)
    canned = files_mark(engine.answers) if isinstance(engine, Canned) else None
    return hashlib.sha256(json.dumps([said, how.max_tokens, how.longest, canned], sort_keys=True).encode()).hexdigest()
