"""A budget is never exceeded by a cent: not even by what the server billed and we never heard of."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from data_runs import query, write_recipe

from loopback import loopback
from potstill.errors import BudgetReached, InputError
from potstill.pipeline import Run
from potstill.recipe import load_recipe

PROMPT, COMPLETION = 150, 600  # dollars for a million tokens: a reply costs about a cent


def prices(folder: Path) -> Path:
    path = folder / "prices.yaml"
    path.write_text(f"loopback: {{input: {PROMPT}, output: {COMPLETION}}}\n")
    return path


def test_fifty_random_budgets_are_kept_under_faults(tmp_path: Path) -> None:
    draw = random.Random(50)
    reached = 0
    with loopback(delay=0.01, faults=0.25, kinds="429,503,500,reset before,reset after,cut json,empty") as server:
        before = server.ledger()
        for number in range(50):
            budget = round(draw.uniform(0.02, 1.2), 4)
            folder = tmp_path / str(number)
            folder.mkdir()
            recipe = load_recipe(
                write_recipe(
                    folder,
                    server.url,
                    prompts=20,
                    engine={"retry_seconds": 0.01, "samples_per_request": draw.randint(1, 3)},
                    n=draw.randint(1, 3),
                    max_tokens=draw.choice([8, 16, 32]),
                    budget=budget,
                    prices=str(prices(folder)),
                ),
                [f"seed={number}"],
            )
            try:
                Run(recipe, folder / "run").generate()
            except BudgetReached as said:
                reached += 1
                assert said.exit_code == 5 and f"${budget:.2f}" in str(said)
            after = server.ledger()
            tokens = {name: after[name] - before[name] for name in ("prompt_tokens", "completion_tokens")}
            billed = (tokens["prompt_tokens"] * PROMPT + tokens["completion_tokens"] * COMPLETION) / 1e6
            ours = dict(query(folder / "run", "SELECT name, value FROM totals"))
            assert billed <= (ours.get("paid", 0) + ours.get("maybe", 0)) / 1e12 + 1e-9 <= budget + 2e-9, number
            before = after
    assert 10 <= reached <= 49  # the draw has budgets that suffice and budgets that do not


def test_a_raised_budget_goes_on_where_the_lower_one_stopped(tmp_path: Path) -> None:
    with loopback() as server:
        path = write_recipe(tmp_path, server.url, prompts=50, max_tokens=16, budget=0.1, prices=str(prices(tmp_path)))
        with pytest.raises(BudgetReached):
            Run(load_recipe(path), tmp_path / "run").generate()
        some = server.attempts()
        assert 0 < some < 50
        assert Run(load_recipe(path, ["generate.budget=10.0"]), tmp_path / "run").generate().exported == 50
        assert server.attempts() == 50


def test_a_price_that_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    file = prices(tmp_path)
    path = write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=1, budget=1.0, prices=str(file))
    for content, said in (
        ("other: {input: 1, output: 1}\n", "has no price for 'loopback'"),
        ("loopback: {input: -1, output: 1}\n", "the price 'input' of 'loopback' is -1"),
        ("loopback: {input: 1}\n", "the price 'output' of 'loopback' is None"),
        ("loopback: [\n", "not valid YAML"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=said):
            Run(load_recipe(path), tmp_path / "run").generate()
    assert not (tmp_path / "run").exists()
