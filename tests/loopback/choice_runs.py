"""Recipes of choices, as tests write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

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
