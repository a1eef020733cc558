"""The command line: verbs over `pipeline.Run`. Exit codes are those of `potstill.errors`.

Heavy imports (torch, transformers, pyarrow) stand inside the verbs that need them: `--help` and `check` answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from potstill import console
from potstill.errors import InputError, PotstillError, Stopped, as_disk_error
from potstill.processes import Process
from potstill.recipe import Recipe, arms_of, load_recipe
from potstill.recipe.student import Encoder
from potstill.store.run import RunFolder

if TYPE_CHECKING:
    from potstill.pipeline import Run

app = App(
    name="potstill",
    help="Distil a big model's ability on a job into a small model you own.",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `execute` answers it with 75, not 130
)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What every verb takes."""

    set: Annotated[tuple[str, ...], Parameter(consume_multiple=False, negative="")] = field(default=())
    "Override a recipe value, for example --set train.epochs=2."
    run: Path | None = None
    "The run folder; by default runs/NAME."
    json: Annotated[bool, Parameter(negative="")] = False
    "JSON lines for programs instead of bars and tables."
    offline: Annotated[bool, Parameter(negative="")] = False
    "Never touch the network."
    debug: Annotated[bool, Parameter(negative="")] = False
    "Show tracebacks."


_DEFAULTS = Options()


@app.command
def check(recipe: Path, *, probe: int | None = None, prompts: int | None = None, options: Options = _DEFAULTS) -> None:
    """Check a recipe and print the plan: prompts, tokens, time, memory, money, licences. Loads no weights.

    Parameters
    ----------
    probe
        Ask the teacher the first so many prompts, keep the answers, estimate the rest.
    prompts
        Plan as if there were so many prompts to train on, like those that there are.
    """
    from potstill.plan import as_probed, plan

    resolved, folder = _resolve(recipe, options)
    found = plan(resolved, as_if=prompts)
    if probe is not None:
        with _running(resolved, folder, options) as run:
            asked = run.generate(limit=probe)
        found = as_probed(found, run.folder.ledger, probe, answers=asked.exported)
    console.show_plan(found, as_json=options.json)


@app.command
def run(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Run all stages of a recipe, or go on with a run folder: prompts, generate, verify, train, evaluate, report."""
    from potstill.pipeline import distill

    resolved, folder = _resolve(recipe, options)
    _for_trained(resolved, arm=None)
    with console.watching(as_json=options.json) as watch:
        done = distill(resolved, folder=folder, watch=watch)
    if Process.this().first:
        console.show_run(done, as_json=options.json)


@app.command
def generate(
    recipe: Path, *, limit: int | None = None, budget: float | None = None, options: Options = _DEFAULTS
) -> None:
    """Let the teacher answer the prompts (of a recipe or a run folder).

    Parameters
    ----------
    limit
        Only the first so many prompts.
    budget
        US dollars that are never exceeded, in place of generate.budget.
    """
    budgeted = () if budget is None else (f"generate.budget={budget}",)
    with _running(*_resolve(recipe, options, *budgeted), options) as run:
        found = run.generate(limit=limit)
    console.show_generated(found, as_json=options.json)


@app.command
def verify(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Check the teacher's answers and keep the good ones. Asks only a judge, if the recipe has one, and only once."""
    with _running(*_resolve(recipe, options), options) as run:
        found = run.verify()
    console.show_verified(found, rescue=run.recipe.rescue is not None, as_json=options.json)


@app.command
def rescue(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Ask again where no answer passed (more samples, a hint, another teacher, as `rescue:` says), and verify."""
    with _running(*_resolve(recipe, options), options) as run:
        found = run.rescue()
    console.show_verified(found, rescue=True, as_json=options.json)


@app.command
def train(recipe: Path, *, arm: str | None = None, options: Options = _DEFAULTS) -> None:
    """Train the student, its controls and the recipe's own arms.

    Parameters
    ----------
    arm
        Only the arm of this name.
    """
    resolved, folder = _resolve(recipe, options)
    _for_trained(resolved, arm)
    with _running(resolved, folder, options) as run:
        models = run.train(arm)
    if Process.this().first:
        console.show_trained(models, as_json=options.json)


@app.command
def evaluate(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Compare student, teacher and controls on the test prompts."""
    with _running(*_resolve(recipe, options), options) as run:
        scores = run.evaluate()
    console.show_scores(scores, as_json=options.json)


@app.command
def export(recipe: Path, *, format: Literal["jsonl", "parquet"] = "jsonl", options: Options = _DEFAULTS) -> None:
    """Write the kept answers (and pairs) for other programs, beside the Parquet files of the run.

    Parameters
    ----------
    format
        jsonl writes them anew; parquet names the files that are there.
    """
    with _running(*_resolve(recipe, options), options) as run:
        files = run.export(format)
    console.show_exported(files, as_json=options.json)


@app.command
def report(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Write report.html and the model's card from what the run folder holds, at any moment of the run."""
    with _running(*_resolve(recipe, options), options) as run:
        page = run.report()
    console.show_report(page, as_json=options.json)


@app.command
def chat(folder: Path, *, text: str | None = None, options: Options = _DEFAULTS) -> None:
    """Ask the student of a run folder: one --text, or line by line."""
    run = RunFolder(folder)
    recipe = run.read_recipe()
    from potstill.serve.chat import answerer

    answer = answerer(run, recipe)
    if text is not None:
        console.say(console.clean(answer(text)))
        return
    if sys.stdin.isatty():
        console.say("Type a prompt; an empty line or Ctrl-D ends.")
    while (line := _ask_line()) is not None:
        console.say(console.clean(answer(line)))


@app.command
def runs(folder: Path = Path("runs"), *, options: Options = _DEFAULTS) -> None:
    """List the run folders and how far they are."""
    console.show_runs(folder, as_json=options.json)


def main() -> None:
    """Entry point of the `potstill` command."""
    # torch's huge pages: a large gradient has 500 times fewer faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, console.interrupt)
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors become one sentence on stderr."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    if "--offline" in arguments:
        os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    try:
        _check_verb(arguments)
        app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        # An interrupt inside an exec'd string (every dataclass that is being imported) makes CPython die of the signal
        # at exit, whatever the code; the next such string resets that.
        exec("")
        stopped = Stopped("stopped", way_out="the same command goes on from here")
        if Process.this().first:  # of several processes, all were stopped
            console.say_error(stopped, as_json=as_json, code=stopped.exit_code)
        return stopped.exit_code
    except CycloptsError as error:
        console.say_error(error, as_json=as_json, code=2)
        return 2
    except Exception as caught:
        # The last net: a full disk surfaces as many types, and what is left is our bug.
        error = caught if isinstance(caught, PotstillError) else as_disk_error(caught)
        error = error or PotstillError(
            f"potstill itself failed: {type(caught).__name__}: {caught}",
            way_out="run again with --debug and report the traceback",
        )
        if debug:
            traceback.print_exc()
        console.say_error(error, as_json=as_json, code=error.exit_code)
        return error.exit_code
    return 0


def _check_verb(arguments: Sequence[str]) -> None:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb not in ("train", "run", None):
        _for_one_process(f"'potstill {verb}'")


def _for_trained(recipe: Recipe, arm: str | None) -> None:
    """Several processes train language models alone."""
    trained = [one for one in arms_of(recipe) if arm in (None, one.name)]
    if not trained:
        _for_one_process(f"the recipe '{recipe.name}'")
    for one in trained:
        if isinstance(one.student, Encoder):
            _for_one_process(f"the encoder '{one.name}'")


def _for_one_process(what: str) -> None:
    """Refuse it where torchrun started several, in one sentence of the first of them."""
    this = Process.this()
    if this.count == 1:
        return
    if not this.first:
        sys.exit(InputError.exit_code)
    raise InputError(
        f"torchrun started {this.count} processes, but {what} is for one",
        way_out="start it without torchrun; several serve `potstill train` and `run` of language models "
        "(--arm leaves the others out)",
    )


@contextmanager
def _running(recipe: Recipe, folder: Path, options: Options) -> Generator[Run]:
    """The run, watched by whoever sits at the terminal."""
    from potstill.pipeline import Run

    with console.watching(as_json=options.json) as watch:
        yield Run(recipe, folder, watch)


def _resolve(target: Path, options: Options, *more: str) -> tuple[Recipe, Path]:
    """A recipe file, or a run folder with its own recipe; and the folder of the run."""
    overrides = (*options.set, *more)
    if (inside := target / "recipe.yaml").is_file():
        return load_recipe(inside, overrides), options.run or target
    recipe = load_recipe(target, overrides)
    return recipe, options.run or Path("runs") / recipe.name


def _ask_line() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return line or None
