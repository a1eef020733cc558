"""Arms that write: each answers the test prompts once, greedily, and the checks say which answers are right."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from potstill.evaluate.base import saved_base
from potstill.evaluate.ledgers import ArmTest, Measured
from potstill.models.locate import facts, locate
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.generate import Generate
from potstill.recipe.student import Student
from potstill.recipe.teacher import Gguf, Local, Teacher
from potstill.records import Finding, Verdict
from potstill.store.requests import Requests
from potstill.store.tables import table
from potstill.store.verdicts import VERDICTS
from potstill.verify.workers import checked


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Which test prompts an arm answered rightly, and what was wrong with the others."""

    passed: Mapping[str, bool]
    reasons: Counter[str]

    @property
    def accuracy(self) -> float:
        return sum(self.passed.values()) / len(self.passed)


def evaluate_texts(test: ArmTest) -> Measured:
    """The answers go into the arm's ledger, what the checks say of them into its verdicts."""
    folder, settings = test.run.test(test.arm), test.settings
    (folder / "examples" / "verdicts.parquet").unlink(missing_ok=True)  # of older answers
    once = {"n": 1, "temperature": 0.0, "max_tokens": settings.max_tokens, "truncated": "keep", "longest": None}
    teacher = test.recipe.teacher
    if test.arm == "teacher":
        how = test.recipe.generate.model_copy(update={**once, "budget": settings.budget})
    else:
        teacher, how = _student(test), Generate.model_validate(once)
    test.answer(teacher, how)
    result = check_answers(folder, settings)
    test.tell(len(result.passed), len(result.passed), note=f"{result.accuracy:.1%} right")
    known = facts(locate(teacher.model)) if isinstance(teacher.engine, Local | Gguf) else None
    return {} if known is None else {"parameters": float(known.parameters)}


def _student(test: ArmTest) -> Teacher:
    """An arm's model folder as the one that answers; its answers are kept under what it was made of."""
    mark = hashlib.sha256(test.made_of.encode()).hexdigest()[:16]
    student, folder = test.student, test.run.arm_model(test.arm)
    assert isinstance(student, Student)
    if test.arm == "base":
        folder = saved_base(student, test.run, seed=test.recipe.seed, mark=mark)
    here = Local.model_validate({"kind": "local", "slots": test.settings.batch_size})
    return Teacher(model=str(folder), revision=mark, licence=student.licence, engine=here)


def check_answers(folder: Path, settings: Evaluate) -> ArmResult:
    """The answers in the ledger of `folder`. A prompt without an answer is not passed, nor is one of which a check
    cannot say. What each check said of each answer is left in examples/verdicts.parquet."""
    reasons: Counter[str] = Counter()
    verdicts = folder / "examples" / "verdicts.parquet"
    with Requests(folder / "ledger.sqlite") as requests, table(verdicts, VERDICTS) as put:
        passed = dict.fromkeys(requests.prompt_ids(), False)
        for prompt, _, findings in checked(requests.samples(most=1), settings.checks, processes=settings.processes):
            verdict = verdict_of(prompt.id, findings)
            passed[prompt.id] = verdict.kept
            if not verdict.kept:
                reasons[verdict.reason] += 1
            put(asdict(verdict))
        if missing := len(passed) - requests.count_answers(most=1):
            reasons["no answer"] = missing
    return ArmResult(passed, reasons)


def verdict_of(prompt_id: str, findings: tuple[Finding, ...]) -> Verdict:
    """Right is what all checks passed."""
    against = next((finding for finding in findings if finding.opinion != "passed"), None)
    reason = "right" if against is None else f"{against.check.partition('@')[0]}: {against.reason}"
    evidence = against.evidence if against else ""
    return Verdict(
        prompt_id=prompt_id, index=0, kept=against is None, reason=reason, evidence=evidence, findings=findings
    )
