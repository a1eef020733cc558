"""What the data card says travels with the data: nothing of one's own servers, keys, money and folders is in it."""

from __future__ import annotations

from collections import Counter

from potstill.recipe import Recipe
from potstill.verify.card import data_card

SERVER = {"kind": "server", "url": "https://gpu7.inside.example:8000/v1", "key_file": "/home/somebody/keys/teacher"}
RECIPE = {
    "name": "sums",
    "prompts": {"source": "/home/somebody/prompts.jsonl", "licence": "mit", "columns": {"text": "q", "reference": "a"}},
    "teacher": {"model": "/home/somebody/models/teacher", "licence": "apache-2.0", "engine": {"kind": "local"}},
    "generate": {"prices": "/home/somebody/prices.yaml"},
    "verify": {
        "checks": [
            {"kind": "exact"},
            {
                "kind": "judge",
                "rubric": "Is it clear?",
                "budget": 7.25,
                "prices": "/home/somebody/prices.yaml",
                "teacher": {"model": "ours/judge", "licence": "mit", "engine": SERVER},
            },
            {"kind": "reward_model", "model": "/home/somebody/models/reward", "licence": "mit"},
        ]
    },
    "select": {"keep": 2, "evaluation": {"source": "/home/somebody/exam.jsonl", "columns": ("q",)}},
    "rescue": {
        "tries": [
            {
                "samples": 2,
                "hint": "Think first.",
                "teacher": {"model": "ours/strong", "revision": "v2", "licence": "mit", "engine": SERVER},
            }
        ]
    },
}


def test_a_card_names_no_server_key_or_folder() -> None:
    card = data_card(Recipe.model_validate(RECIPE, strict=False), Counter(kept=1), Counter(kept=1))
    for private in ("inside.example", "somebody", "/home", "key", "prices", "7.25"):
        assert private not in card, private
    for public in ("by teacher to", "ours/judge", "ours/strong", "v2", "Think first.", "Is it clear?", "exam.jsonl"):
        assert public in card, public
    assert '"model": "reward"' in card and '"samples": 2' in card and '"keep": 2' in card
