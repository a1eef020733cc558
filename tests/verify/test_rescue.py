"""Rescue: prompts whose answers all failed are asked again; what comes is paid once, counted, and free of hints."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from loopback import loopback
from potstill.cli import execute
from potstill.errors import BudgetReached, InputError, LicenceRefused, PotstillError
from potstill.generate.require import require_sections
from potstill.generate.rescue import try_of
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.report.gather import gather
from potstill.store.run import RunFolder

EASY, HARD, HOPELESS = "1 + 1", "17 * 3", "what is truth"
GOLD = {EASY: "2", HARD: "51", HOPELESS: "?"}


def canned(path: Path, answers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    lines = [{"prompt": prompt, "answer": answer} for prompt, some in answers.items() for answer in some]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "canned", "answers": str(path)}


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    """Three prompts: the teacher knows the first, another teacher the second, nobody the third."""
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "q": q, "a": a}) + "\n" for i, (q, a) in enumerate(GOLD.items()))
    )
    weak = canned(folder / "weak.jsonl", {EASY: ["2"], HARD: ["15"], HOPELESS: ["no idea"]})
    strong = canned(folder / "strong.jsonl", {EASY: ["2"], HARD: ["51"], HOPELESS: ["a riddle"]})
    values = {
        "name": "sums",
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "licence": "mit",
            "columns": {"id": "id", "text": "q", "reference": "a"},
        },
        "teacher": {"model": "weak", "licence": "apache-2.0", "instructions": "Reckon.", "engine": weak},
        "generate": {"n": 2},
        "verify": {"checks": [{"kind": "exact"}], "processes": 1},
        "rescue": {
            "tries": [
                {"samples": 3},
                {
                    "samples": 2,
                    "hint": "Think first.",
                    "teacher": {"model": "strong", "licence": "mit", "engine": strong},
                },
            ]
        },
        **changes,
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(values, file)
    return load_recipe(path)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "examples" / f"{name}.parquet").to_pylist()


def requests_sent(run: Path) -> int:
    with sqlite3.connect(run / "rescue" / "ledger.sqlite") as db:
        return db.execute("SELECT count(*) FROM attempts").fetchone()[0]


def test_a_hard_prompt_is_rescued_and_a_hopeless_one_is_counted(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    Run(recipe, run).generate()
    assert Run(recipe, run).verify().prompts == {"kept": 1, "lost": 2, "unanswered": 0}
    found = Run(recipe, run).rescue()
    assert found.prompts == {"kept": 1, "rescued": 1, "lost": 1, "unanswered": 0}
    # the easy prompt was not asked again: 3 more for each lost one, then 2 by the other teacher
    assert requests_sent(run) == 2 * 3 + 2 * 2
    easy, hard = rows(run, "selected")
    assert (easy["teacher"], easy["rescue"], easy["licence"]) == ("weak", 0, "apache-2.0 (teacher), mit (prompts)")
    assert (hard["teacher"], hard["rescue"], hard["licence"]) == ("strong", 2, "mit (teacher), mit (prompts)")
    assert [(turn["role"], turn["content"]) for turn in hard["messages"]] == [("user", HARD), ("assistant", "51")]
    verdicts = rows(run, "verdicts")
    assert len(verdicts) == 2 + 2 * (2 + 3 + 2) and found.reasons.total() == len(verdicts)
    numbers = [(v["prompt_id"], v["index"]) for v in verdicts]
    assert len(set(numbers)) == len(numbers) and [i for p, i in numbers if p == "p1"] == list(range(7))
    card = (run / "examples" / "README.md").read_text()
    assert "Rescued: 1 prompts" in card and "still lost: 1" in card and "Think first." in card
    assert "mit (teacher)" in card and "apache-2.0 (teacher)" in card


def test_rescue_is_paid_once_and_later_verifications_use_it(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    Run(recipe, run).generate()
    Run(recipe, run).rescue()
    first = {p.name: p.read_bytes() for p in (run / "examples").iterdir()}
    sent = requests_sent(run)
    for path in ("weak.jsonl", "strong.jsonl"):
        (tmp_path / path).write_text("")  # whoever asks now is refused
    assert Run(recipe, run).rescue().prompts["rescued"] == 1 and requests_sent(run) == sent
    assert Run(recipe, run).verify().prompts["rescued"] == 1
    assert {p.name: p.read_bytes() for p in (run / "examples").iterdir()} == first


def test_a_try_that_changed_brings_nothing_until_it_is_asked(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    Run(recipe, run).generate()
    Run(recipe, run).rescue()
    other = load_recipe(tmp_path / "recipe.yaml", ["rescue.tries=[{samples: 2, hint: 'Guess.'}]"])
    assert Run(other, run).verify().prompts == {"kept": 1, "lost": 2, "unanswered": 0}
    assert Run(recipe, run).verify().prompts["rescued"] == 1  # and what was paid for is still there


def test_checks_that_became_milder_need_no_rescue(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    Run(recipe, run).generate()
    Run(recipe, run).rescue()
    mild = load_recipe(tmp_path / "recipe.yaml", ["verify.checks=[{kind: length}]"])
    found = Run(mild, run).verify()
    assert found.prompts["kept"] == 3 and found.reasons["rescue was not needed"] == 2 * (3 + 2)
    assert all(row["rescue"] == 0 for row in rows(run, "selected"))


def test_a_prompt_without_any_answer_is_counted_and_asked_again(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path), tmp_path / "run"
    weak = tmp_path / "weak.jsonl"
    weak.write_text(weak.read_text().replace(HARD, "another"))  # the teacher refuses the hard one
    Run(recipe, run).generate()
    found = Run(recipe, run).verify()
    assert found.prompts == {"kept": 1, "lost": 1, "unanswered": 1}
    assert "of them 1 without an answer to judge" in (run / "examples" / "README.md").read_text()
    assert Run(recipe, run).rescue().prompts == {"kept": 1, "rescued": 1, "lost": 1, "unanswered": 0}


def test_the_band_does_not_hold_back_what_rescue_brought(tmp_path: Path) -> None:
    select = {"pass_rate": [0.2, 0.9], "weight": "pass_rate"}
    recipe, run = recipe_in(tmp_path, select=select), tmp_path / "run"
    Run(recipe, run).generate()
    found = Run(recipe, run).rescue()
    assert found.reasons["prompt too easy"] == 2 and found.prompts["rescued"] == 1
    (row,) = rows(run, "selected")
    assert row["prompt_id"] == "p1" and row["weight"] == pytest.approx(2 * (1 - 1 / 4))  # 0 of 2 passed


def test_what_a_judge_fails_is_asked_again_and_what_comes_is_judged_once(tmp_path: Path) -> None:
    long = "word " * 10
    own = canned(tmp_path / "own.jsonl", {EASY: [long], HARD: ["a"], HOPELESS: ["forbidden " + long]})
    more = canned(tmp_path / "more.jsonl", {EASY: [long], HARD: ["a b"], HOPELESS: ["a b c"]})
    other = canned(tmp_path / "other.jsonl", {EASY: [long], HARD: [long], HOPELESS: ["forbidden"]})
    tries = [
        {"samples": 2, "teacher": {"model": model, "licence": "mit", "engine": engine}}
        for model, engine in (("more", more), ("other", other))
    ]
    with loopback(judge="long") as server:  # it scores words
        engine = {"kind": "server", "url": server.url}
        judge = {"kind": "judge", "rubric": "long", "teacher": {"model": "j", "licence": "mit", "engine": engine}}
        free = {"kind": "regex", "pattern": "forbidden", "absent": True}
        recipe = recipe_in(
            tmp_path,
            teacher={"model": "own", "licence": "mit", "engine": own},
            verify={"checks": [judge, free], "processes": 1},
            select={"prefer": "score", "pass_rate": [0.5, 1.0]},
            rescue={"tries": tries},
        )
        run = tmp_path / "run"
        Run(recipe, run).generate()
        assert Run(recipe, run).verify().prompts == {"kept": 1, "lost": 2, "unanswered": 0}
        assert server.attempts() == 2  # what the free check fails is not asked about
        found = Run(recipe, run).rescue()
        assert found.prompts == {"kept": 1, "rescued": 1, "lost": 1, "unanswered": 0}
        assert server.attempts() == found.judges["judge"]["attempts"] == 2 + 2 + 1
        assert [(row["prompt_id"], row["rescue"]) for row in rows(run, "selected")] == [("p0", 0), ("p1", 2)]
        reasons = {(v["prompt_id"], v["rescue"]): v["reason"] for v in rows(run, "verdicts")}
        assert reasons["p1", 0] == reasons["p1", 1] == reasons["p2", 1] == "judge: the judge says no"
        assert reasons["p2", 2].startswith("regex")
        first = {p.name: p.read_bytes() for p in (run / "examples").iterdir()}
        Run(recipe, run).rescue()
        assert server.attempts() == 5 and {p.name: p.read_bytes() for p in (run / "examples").iterdir()} == first
    spent = gather(RunFolder(run)).spent
    assert spent["the judge 'judge'"]["attempts"] == 5 and spent["hard prompts asked again"]["attempts"] == 8


def test_a_hint_stands_behind_the_instructions_and_the_same_again_has_another_seed(tmp_path: Path) -> None:
    tries = [{"samples": 1}, {"samples": 1, "hint": "Think."}, {"samples": 2}]
    recipe = recipe_in(tmp_path, rescue={"tries": tries})
    asked = [try_of(recipe, number, Path("x.jsonl")) for number in (1, 2, 3)]
    assert [one.teacher.instructions for one in asked] == ["Reckon.", "Reckon.\n\nThink.", "Reckon."]
    assert len({recipe.seed, asked[0].seed, asked[2].seed}) == 3
    assert [one.generate.n for one in asked] == [1, 1, 2]


def test_a_budget_of_its_own_stops_rescue(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("{weak: {input: 0, output: 0}, strong: {input: 1, output: 1}}\n")
    served = {"kind": "server", "url": "http://127.0.0.1:9/v1", "attempts": 1}
    strong = {"model": "strong", "licence": "mit", "engine": served}
    recipe = recipe_in(
        tmp_path,
        generate={"n": 2, "prices": str(prices)},
        rescue={"tries": [{"samples": 1, "teacher": strong}], "budget": 1e-9},
    )
    run = tmp_path / "run"
    Run(recipe, run).generate()
    with pytest.raises(BudgetReached):
        Run(recipe, run).rescue()
    assert Run(recipe, run).verify().prompts["lost"] == 2


def test_another_teachers_licence_is_checked_first(tmp_path: Path) -> None:
    engine = canned(tmp_path / "other.jsonl", {HARD: ["51"]})
    tries = [{"samples": 1, "teacher": {"model": "other", "licence": "llama2", "engine": engine}}]
    with pytest.raises(LicenceRefused, match=r"rescue\.tries\.0\.teacher\.licence"):
        require_sections(recipe_in(tmp_path, rescue={"tries": tries}))


def test_a_missing_key_of_another_teacher_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    engine = {"kind": "server", "url": "http://127.0.0.1:9/v1", "key_env": "NO_SUCH_KEY_HERE"}
    tries = [{"samples": 1, "teacher": {"model": "other", "licence": "mit", "engine": engine}}]
    with pytest.raises(PotstillError, match="NO_SUCH_KEY_HERE"):
        Run(recipe_in(tmp_path, rescue={"tries": tries}), tmp_path / "run").generate()
    assert not (tmp_path / "run").exists()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "without checks": ({"verify": None}, "'rescue' asks again where no answer passed the checks"),
    "the same at temperature 0": ({"generate": {"n": 1, "temperature": 0.0}}, "the same at temperature 0"),
    "no tries": ({"rescue": {"tries": []}}, "'rescue.tries' is"),
    "a budget for nothing": ({"rescue": {"tries": [{"samples": 1}], "budget": 1.0}}, "'rescue.budget' needs a served"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(name: str, tmp_path: Path) -> None:
    changes, said = MISTAKES[name]
    with pytest.raises(InputError) as raised:
        recipe_in(tmp_path, **changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_in(tmp_path)
    recipe, run = str(tmp_path / "recipe.yaml"), str(tmp_path / "run")
    assert execute(["rescue", recipe, "--run", run]) == 2
    assert "holds no answers yet" in capsys.readouterr().err
    assert execute(["run", recipe, "--run", run]) == 0
    capsys.readouterr()
    assert execute(["verify", recipe, "--run", run]) == 0
    assert "rescued prompts: 1" in capsys.readouterr().out
    assert execute(["rescue", recipe, "--run", run, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["prompts"] == {"unanswered": 0, "kept": 1, "rescued": 1, "lost": 1}
    assert execute(["rescue", recipe, "--run", run, "--set", "rescue=null"]) == 2
    assert "the recipe has no 'rescue' section" in capsys.readouterr().err
