"""What the recipe's checks say of one answer, for as long as a training lasts: `train.on_policy.reward` and
`train.predict_with_generate` ask."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

from potstill.errors import InputError
from potstill.recipe.whole import Recipe
from potstill.records import Finding, Prompt, Sample
from potstill.verify.workers import checking_workers

Reward = Callable[[Sequence[Sample]], Sequence[float | None]]
"""What the checks say of answers to the prompts that they name: 1 passed, 0 failed, None undecided."""


@contextmanager
def rewarding(recipe: Recipe, prompts: Iterable[Prompt]) -> Generator[Reward]:
    """The checks that tell of one answer by itself, in processes that live until the end. `prompts` are all that the
    recipe asks; an answer is looked up by its prompt's id, since two prompts may differ in their reference alone."""
    assert recipe.verify is not None
    known = {prompt.id: prompt for prompt in prompts}
    with checking_workers(recipe.verify.alone, processes=recipe.verify.processes) as look:

        def reward(answers: Sequence[Sample]) -> list[float | None]:
            gone = next((sample.prompt_id for sample in answers if sample.prompt_id not in known), None)
            if gone is not None:
                raise InputError(
                    f"a kept answer's prompt is not in the recipe any more: '{gone}'", way_out="potstill verify first"
                )
            asked = ((known[sample.prompt_id], sample) for sample in answers)
            return [_opinion(sample, findings) for _, sample, findings in look(asked)]

        yield reward


def _opinion(sample: Sample, findings: Sequence[Finding]) -> float | None:
    opinions = {finding.opinion for finding in findings}
    if sample.cut_off or sample.empty or "failed" in opinions:
        return 0.0
    return None if "undecided" in opinions else 1.0
