"""An arm's ledger of answers to the test prompts."""

from __future__ import annotations

from pathlib import Path

from choice_runs import write_choices

from loopback import loopback
from potstill.evaluate.ledgers import ArmTest
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.records import unwatched
from potstill.store.run import RunFolder, open_ledger


def test_a_prompt_that_was_answered_before_it_became_a_test_prompt_is_not_paid_for_again(tmp_path: Path) -> None:
    with loopback(choices="good,bad", logprobs="openai") as server:
        path = write_choices(tmp_path, {"kind": "server", "url": server.url}, prompts=40)
        Run(load_recipe(path), tmp_path / "run").generate()
        before = server.attempts()
        split = load_recipe(
            path,
            [
                "prompts.split={train: 20, validation: 8, test: 12}",
                "verify.checks=[{kind: confidence, at_least: 0.5}]",
                "student={start: org/small, licence: mit}",
                "train={}",
                "evaluate={}",
            ],
        )
        test = ArmTest(split, RunFolder(tmp_path / "run"), "teacher", "", unwatched)
        test.answer(split.teacher, split.generate)
        assert server.attempts() == before == 40
    with open_ledger(tmp_path / "run") as own, open_ledger(tmp_path / "run" / "test" / "teacher") as tested:
        known = {prompt.text: sample.choice_logprobs for prompt, sample in own.samples()}
        answers = {prompt.text: sample.choice_logprobs for prompt, sample in tested.samples()}
    assert len(answers) == 12 and answers.items() <= known.items()
