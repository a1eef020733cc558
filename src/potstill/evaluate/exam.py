"""Arms that write, examined: which prompts each answered rightly by the checks, and how they compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.evaluate.compare import gaps, paired
from potstill.evaluate.metrics import interval, resamples
from potstill.recipe.evaluate import Evaluate
from potstill.records import Score
from potstill.store.requests import Requests
from potstill.store.tables import table
from potstill.store.verdicts import VERDICTS
from potstill.verify.workers import checked

_METRIC = "pass_rate"


@dataclass(frozen=True, slots=True)
class Paper:
    """One arm's exam: which prompts it answered rightly, and what was wrong with the others."""

    passed: Mapping[str, bool]
    reasons: Counter[str]

    @property
    def rate(self) -> float:
        return sum(self.passed.values()) / len(self.passed)


def marked(folder: Path, exam: Evaluate) -> Paper:
    """The answers in the run folder's ledger. A prompt without an answer is not passed, nor is one of which a check
    cannot say. What each check said of each answer is left in examples/verdicts.parquet."""
    reasons: Counter[str] = Counter()
    verdicts = folder / "examples" / "verdicts.parquet"
    with Requests(folder / "ledger.sqlite") as requests, table(verdicts, VERDICTS) as put:
        passed = dict.fromkeys(requests.prompt_ids(), False)
        for prompt, _, findings in checked(requests.samples(most=1), exam.checks, processes=exam.processes):
            against = next((f for f in findings if f.opinion != "passed"), None)
            passed[prompt.id] = against is None
            reason = "right" if against is None else f"{against.check.partition('@')[0]}: {against.reason}"
            if against is not None:
                reasons[reason] += 1
            put(
                {
                    "prompt_id": prompt.id,
                    "index": 0,
                    "kept": against is None,
                    "reason": reason,
                    "evidence": against.evidence if against else "",
                    "findings": [asdict(finding) for finding in findings],
                }
            )
        if missing := len(passed) - requests.count_answers(most=1):
            reasons["no answer"] = missing
    return Paper(passed, reasons)


def compare_papers(papers: Mapping[str, Paper], *, count: int, seed: int) -> dict[str, Any]:
    """`arms`, `paired` and `gap_recovered` of scores.json, all from the same `count` resamples of prompts."""
    ids = list(papers["teacher"].passed)
    rows_BN = resamples(len(ids), count=count, seed=seed)
    right = {arm: np.array([paper.passed[i] for i in ids], dtype=np.float64) for arm, paper in papers.items()}
    points = {arm: {_METRIC: right_N.mean(keepdims=True)} for arm, right_N in right.items()}
    draws = {arm: {_METRIC: right_N[rows_BN].mean(axis=-1)} for arm, right_N in right.items()}
    arms = {
        arm: {
            _METRIC: Score(value=paper.rate, n=len(ids), ci95=interval(draws[arm][_METRIC])).as_dict(),
            "wrong": dict(paper.reasons.most_common()),
        }
        for arm, paper in papers.items()
    }
    return {"arms": arms, "paired": paired(points, draws, [_METRIC]), "gap_recovered": gaps(points, draws, _METRIC)}
