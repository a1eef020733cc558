"""Rows that are longer than a model has positions for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel

from potstill.models.config import positions_of, text_config
from potstill.models.locate import read_json
from potstill.train.batch import Row
from potstill.train.rows import require_some
from potstill.train.scored import ScoringModel


def fitting(
    rows: Sequence[Row],
    student: PreTrainedModel,
    left_out: Counter[str],
    *,
    scorer: ScoringModel | None = None,
    own: int = 0,
) -> list[Row]:
    """Those that the student, and the model in this process that scores them, can read to the end, and after whose
    prompt the student can write `own` tokens; `left_out` counts the others. Raises InputError where none is left."""
    most = getattr(student.config, "max_position_embeddings", None)
    theirs = None
    if scorer is not None and scorer.named.engine is None:
        theirs = positions_of(text_config(read_json(scorer.folder / "config.json")))
    kept: list[Row] = []
    for row in rows:
        written = max(len(row.target) - 1, own)  # the last token is written, and never read
        if most is not None and len(row.prefix) + written > most:
            left_out[f"it is longer than the student's {most:,} positions"] += 1
        elif theirs is not None and len(row.teacher_prefix) + written > theirs:
            left_out[f"it is longer than the teacher's {theirs:,} positions"] += 1
        else:
            kept.append(row)
    require_some(kept, left_out)
    return kept
