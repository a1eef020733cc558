"""Recipes of choices, as tests write them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from potstill.recipe import Recipe, load_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Review: {{ m['content'] }}\nSentiment:"
    "{% else %} {{ m['content'] }}\n\n{% endif %}{% endfor %}"
)
"""Each turn as plain text; the answer after a blank."""


def write_choices(folder: Path, engine: Mapping[str, Any], *, prompts: int = 12, **sections: Any) -> Path:
    """A recipe of two choices for `prompts` short reviews; `sections` replace those of the recipe."""
    rows = [{"text": f"film {i} is {('good', 'dull')[i % 2]}", "label": ("good", "bad")[i % 2]} for i in range(prompts)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "choices",
        "task": {"kind": "choice", "choices": ["good", "bad"]},
        "prompts": {
            "source": str(folder / "reviews.jsonl"),
            "licence": "mit",
            "columns": {"text": "text", "reference": "label"},
        },
        "teacher": {
            "model": "loopback",
            "licence": "apache-2.0",
            "examples": [{"prompt": "a wonderful film", "answer": "good"}],
            "engine": dict(engine),
        },
        **sections,
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


def tiny_quickstart(folder: Path, teacher: Path, *overrides: str) -> Recipe:
    """The quick start's recipe with a tiny teacher that is its student's start too, and 48 rows of words."""
    if not (rows := folder / "reviews.tsv").is_file():  # a file written anew is another source
        draw, words = random.Random(3), ["film", "plot", "actor", "scene", "light", "music", "quiet", "loud"]
        rows.write_text("\n".join(f"{i}\t{(-3, 3)[i % 2]}\t{' '.join(draw.sample(words, 5))}" for i in range(60)))
    smaller = (
        f"prompts.source={rows}",
        "prompts.split={train: 32, validation: 8, test: 8}",
        f"teacher.model={teacher}",
        "teacher.examples=[]",
        "verify.checks=[{kind: confidence, at_least: 0.0}]",
        f"student={{start: '{teacher}', licence: mit, layers: 1, freeze_embeddings: false}}",
        "train.epochs=1",
    )
    return load_recipe(QUICKSTART, (*smaller, *overrides))
