"""A check of your own, in a module beside the recipe, through the command as `pip` installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RECIPE = """
name: words
prompts: {source: prompts.jsonl, licence: mit, columns: {text: text}}
teacher: {model: canned, licence: mit, engine: {kind: canned, answers: answers.jsonl}}
verify: {checks: [{kind: function, name: "own_checks:is_short"}]}
generate: {n: 1}
"""
FUNCTION = "def is_short(prompt, answer, reference):\n    return len(answer) < 4\n"


def test_the_command_finds_a_function_in_the_folder_where_it_runs(tmp_path: Path) -> None:
    answers = {"one": "yes", "two": "certainly", "three": "no"}
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "own_checks.py").write_text(FUNCTION)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in answers))
    lines = (json.dumps({"prompt": text, "answer": answer}) + "\n" for text, answer in answers.items())
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    command = [Path(sys.executable).with_name("potstill"), "run", "recipe.yaml"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "2 of 3 answers kept" in ran.stdout
