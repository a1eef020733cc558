"""A few prompts become many, and no two are nearly the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from potstill.engines.canned import CannedSampler
from potstill.errors import InputError
from potstill.generate import ask
from potstill.generate.expand import Distinct, ask_for_more, listed
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe


def test_a_numbered_list_is_read_whatever_its_marks() -> None:
    said = "Sure!\n1. Add two and two.\n 2) Name a river\n- Spell a word \n\nDone."
    assert list(listed(said)) == ["Add two and two.", "Name a river", "Spell a word"]


def test_near_duplicates_are_dropped_and_others_kept() -> None:
    distinct = Distinct(["Write a short poem about the sea in spring"], overlap=0.5)
    assert not distinct.add("write a short poem about the sea, in spring!")
    assert not distinct.add("Write a short poem about the sea in autumn")
    assert distinct.add("Explain how a bridge carries its load_recipe")
    assert not distinct.add("...") and distinct.add("Rivers") and not distinct.add("rivers")


def test_requests_are_a_function_of_the_seed_and_unlike_each_other() -> None:
    def ask(number: int) -> str:
        return ask_for_more(["a b c", "d e f"], count=5, show=4, number=number, seed=1)

    assert ask(3) == ask(3) and len({ask(i) for i in range(20)}) == 20 and "1. " in ask(0)


WORDS = ["sun", "moon", "star", "tree", "river", "stone", "bird"]


def recipe(folder: Path, to: int) -> Recipe:
    (folder / "seeds.jsonl").write_text("".join(json.dumps({"q": f"describe the colour of {w}"}) + "\n" for w in "abc"))
    (folder / "answers.jsonl").write_text("")
    seeds = {"source": str(folder / "seeds.jsonl"), "licence": "mit", "columns": {"text": "q"}}
    (folder / "recipe.yaml").write_text(
        json.dumps(
            {
                "name": "more",
                "prompts": {"kind": "expand", "seeds": seeds, "to": to, "per_request": 4},
                "teacher": {
                    "model": "m",
                    "licence": "mit",
                    "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
                },
                "generate": {"n": 2},
            }
        )
    )
    return load_recipe(folder / "recipe.yaml")


def teacher(asked: list[str], fresh: bool) -> CannedSampler:
    def answer(prompt: str, seed: int) -> str:
        asked.append(prompt)
        if "new tasks" not in prompt:
            return f"answer {seed}"
        draw = random.Random(prompt) if fresh else random.Random(0)
        return "\n".join(f"{i}. {' '.join(draw.choices(WORDS, k=8))}" for i in range(4))

    return CannedSampler(answer)


def test_seeds_grow_to_the_number_asked_for_and_everything_is_paid_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ask, "sampler_for", lambda _: teacher(asked, fresh=True))
    found = Run(recipe(tmp_path, 40), tmp_path / "run").generate()
    assert found.prompts == 40 and found.exported == 80
    written = [json.loads(line)["text"] for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert len(set(written)) == 40 and written[0] == "describe the colour of a"
    before = len(asked)
    assert Run(recipe(tmp_path, 40), tmp_path / "run").generate().exported == 80 and len(asked) == before


def test_a_teacher_that_repeats_itself_is_not_asked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ask, "sampler_for", lambda _: teacher(asked, fresh=False))
    found = Run(recipe(tmp_path, 100), tmp_path / "run").generate()
    assert found.prompts == 7 and sum("new tasks" in prompt for prompt in asked) <= 6 * 25


def test_no_seeds_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "sampler_for", lambda _: teacher([], fresh=True))
    asked = recipe(tmp_path, 10)
    (tmp_path / "seeds.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no prompts"):
        Run(asked, tmp_path / "run").generate()
