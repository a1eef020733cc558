"""The light verbs are light, and what the documents name exists."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from potstill import console
from potstill.recipe import load_recipe
from potstill.recipe.choices import load_choice_recipe
from potstill.recipe.file import as_yaml
from potstill.recipe.whole import is_data_recipe
from potstill.records import Progress

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("check", "run", "generate", "verify", "train", "evaluate", "report", "chat", "runs")


SIZES = [["check", f"recipes/{path.name}", "--prompts", "20000"] for path in (ROOT / "recipes").glob("*_to_*.yaml")]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["check", "recipes/quickstart.yaml"], ["check", "recipes/answers.yaml"], *sorted(SIZES), ["runs"]],
)
def test_light_verbs_answer_in_under_a_second_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from potstill.cli import execute; code = execute(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'aiohttp', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "sys.exit(code)"
    )
    libraries = "import cyclopts, jinja2, pydantic, rich.console, rich.table, ruamel.yaml, tokenizers"
    took: list[float] = []
    alone: list[float] = []
    for _ in range(3):  # the best of three: CI's cores are shared
        took.append(seconds_of([code, *arguments]))
        if took[-1] < 1:
            return
        alone.append(seconds_of([libraries]))
    # A slow machine takes longer for everything: as much longer as for the libraries alone.
    assert min(took) < max(1.0, 5 * min(alone)), (took, alone)


def seconds_of(arguments: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def test_every_recipe_loads_and_its_resolved_form_is_the_same_recipe(tmp_path: Path) -> None:
    recipes = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.name != "prices.yaml")
    assert recipes
    for path in recipes:
        read = load_recipe if is_data_recipe(path) else load_choice_recipe
        recipe = read(path)
        (tmp_path / path.name).write_text(as_yaml(recipe))
        assert read(tmp_path / path.name) == recipe


def test_readme_names_every_verb_and_every_target_it_names_exists() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for verb in VERBS:
        assert f"potstill {verb}" in readme, verb
    for target in ("demo", "test", "check"):
        assert f"make {target}" in readme and f"\n{target}:" in makefile


def test_an_interrupt_that_somebody_swallows_still_stops_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_interrupted", threading.Event())
    step = Progress(stage="train", what="student", done=1, total=2)
    with console.watching(as_json=False) as watch:
        watch(step)
        with contextlib.suppress(KeyboardInterrupt):
            console.interrupt(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            watch(step)
