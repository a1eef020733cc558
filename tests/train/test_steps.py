"""The sums of recipes/sums.yaml, and how benchmarks/steps.py compares those who learnt them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from steps import Compared, lengths, prepare, recipe_of, Size

ROOT = Path(__file__).parents[2]


def test_an_exam_of_sums_is_worked_out_rightly_and_nobody_has_learnt_it(tmp_path: Path) -> None:
    place = prepare(tmp_path, 3, Size(sums=300, problems=60, layers=1, width=32))
    learn, test = (
        [json.loads(line) for line in (place / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("sums", "sums_test")
    )

    def terms(row: dict[str, str]) -> tuple[int, ...]:
        return tuple(sorted(map(int, row["text"].removesuffix("=").split("+"))))

    assert not {terms(row) for row in learn} & {terms(row) for row in test}
    assert all(sum(terms(row)) == int(row["sum"]) for row in (*learn, *test))
    answers = [json.loads(line) for line in (place / "data" / "answers.jsonl").read_text().splitlines()]
    for row in answers:
        thought, _, answer = row["answer"].removeprefix("<think>").partition("</think>")
        for line in thought.splitlines():
            first, *steps = line.split("=")
            total = eval(first)
            for step in steps:
                written, *added = step.split("+")
                assert int(written) == total
                total += sum(map(int, added))
        units, tens = (int(line.split("=")[-1]) for line in thought.splitlines())
        assert answer == f"{tens}{units % 10}" == str(eval(row["prompt"].removesuffix("=")))
    recipe = recipe_of(place / "data", 3)
    with_steps, without = (lengths(place, recipe, reasoning=reasoning) for reasoning in (True, False))
    assert with_steps[1] > 7 * without[1] and with_steps[0] - without[0] == pytest.approx(with_steps[1] - without[1])
