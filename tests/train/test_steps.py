"""The sums of recipes/sums.yaml, and how benchmarks/steps.py compares those who learnt them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import Compared, Size, lengths, prepare, recipe_of


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def terms(question: str) -> list[int]:
    return sorted(map(int, question.removesuffix("=").split("+")))


def last_total(line: str) -> int:
    """Of "7+5=12+6=18", after every step of it was done again."""
    first, *steps = line.split("=")
    total = sum(map(int, first.split("+")))
    for step in steps:
        written, *added = map(int, step.split("+"))
        assert written == total, line
        total += sum(added)
    return total


def test_sums_are_worked_out_rightly_and_nobody_has_learnt_the_exam(tmp_path: Path) -> None:
    place = prepare(tmp_path, 3, Size(sums=300, problems=60, layers=1, width=32))
    learn, test = (rows_of(place / "data" / f"{name}.jsonl") for name in ("sums", "sums_test"))
    assert not {(*terms(row["text"]),) for row in learn} & {(*terms(row["text"]),) for row in test}
    assert all(sum(terms(row["text"])) == int(row["sum"]) for row in (*learn, *test))
    for row in rows_of(place / "data" / "answers.jsonl"):
        thought, _, answer = row["answer"].removeprefix("<think>").partition("</think>")
        units, tens = map(last_total, thought.splitlines())
        assert answer == f"{tens}{units % 10}" == str(sum(terms(row["prompt"])))
    recipe = recipe_of(place / "data", 3)
    (read, trained), (read_alone, trained_alone) = (lengths(place, recipe, reasoning=steps) for steps in (True, False))
    assert trained > 7 * trained_alone and read - read_alone == pytest.approx(trained - trained_alone)


@given(seed=st.integers(0, 2**31))
def test_a_difference_of_arms_is_that_of_their_shares(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right = {arm: (draw.random((3, 40)) < share).astype(np.float64) for arm, share in (("a", 0.7), ("b", 0.4))}
    compared = Compared.of({**right, "same": right["a"]})
    among_N = (np.arange(40) < 25).astype(np.float64)
    for some_N in (None, among_N):
        (a, low, high), (b, *_) = compared.share("a", among_N=some_N), compared.share("b", among_N=some_N)
        assert low <= a <= high and compared.share("a", "b", some_N)[0] == pytest.approx(a - b)
        assert compared.share("a", "same", some_N) == (0, 0, 0)
    assert compared.share("a", among_N=among_N)[0] == pytest.approx(right["a"][:, :25].mean())
