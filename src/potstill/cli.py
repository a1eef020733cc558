"""The command line: verbs over the pipeline. Exit codes are those of `potstill.errors`.

Heavy imports (torch, transformers) stand inside the verbs that need them, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from potstill import console
from potstill.errors import InputError, PotstillError, Stopped, as_disk_error
from potstill.processes import Process
from potstill.recipe import load_recipe
from potstill.recipe.choices import ChoiceRecipe, load_choice_recipe
from potstill.recipe.whole import Recipe, is_data_recipe
from potstill.records import Stage, Watch
from potstill.store.run import recipe_of

if TYPE_CHECKING:
    from potstill.verify.answers import Nats

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
        Ask the teacher the first so many prompts of a recipe with `generate:`, keep the answers, estimate the rest.
    prompts
        Plan a recipe with `generate:` as if it had so many prompts like those that it has.
    """
    if _writes_data(recipe):
        _check_data(recipe, probe, prompts, options)
        return
    if probe is not None or prompts is not None:
        raise InputError("--probe and --prompts need a recipe with a 'generate:' section", way_out="leave them out")
    from potstill.plan import plan

    resolved, _ = _resolve(recipe, options)
    found = plan(resolved)
    if options.json:
        console.say_json({"name": resolved.name, "prompts": found.prompts, "licences": list(found.licences)})
    else:
        console.show_plan(found)


@app.command
def run(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Run all stages of a recipe, or go on with a run folder: prompts, generate, verify, train, evaluate, report."""
    if _writes_data(recipe):
        _walk_data(recipe, None, options)
    else:
        _walk(recipe, "report", options)


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
    if _writes_data(recipe):
        budgeted = () if budget is None else (f"generate.budget={budget}",)
        _walk_data(recipe, "generate", options, limit=limit, overrides=budgeted)
    elif limit is not None or budget is not None:
        raise InputError("--limit and --budget need a recipe with a 'generate:' section", way_out="leave them out")
    else:
        _walk(recipe, "generate", options)


@app.command
def verify(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Check the teacher's answers and keep the good ones. Asks only a judge, if the recipe has one, and only once."""
    _walk(recipe, "verify", options)


@app.command
def rescue(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Ask again where no answer passed (more samples, a hint, another teacher, as `rescue:` says), and verify."""
    if not _writes_data(recipe):
        raise InputError("potstill rescue needs a recipe with a 'rescue:' section", way_out="add one to a data recipe")
    _walk_data(recipe, "rescue", options)


@app.command
def export(recipe: Path, *, format: Literal["jsonl", "parquet"] = "jsonl", options: Options = _DEFAULTS) -> None:
    """Write the selected answers (and pairs) for other programs, beside the Parquet files of `potstill verify`.

    Parameters
    ----------
    format
        jsonl writes them anew; parquet names the files that are there.
    """
    if not _writes_data(recipe):
        raise InputError("potstill export needs a recipe with a 'generate:' section", way_out="see `model/` of the run")
    _, folder = _resolve_data(recipe, options.set, options)
    from potstill.store.export import export_examples

    console.show_export(export_examples(folder / "examples", form=format), as_json=options.json)


@app.command
def train(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Train the student and its controls."""
    _walk(recipe, "train", options)


@app.command
def evaluate(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Compare student, teacher and controls on the test prompts (a recipe with `generate:` writes its report too)."""
    _walk(recipe, "evaluate", options)


@app.command
def report(recipe: Path, *, options: Options = _DEFAULTS) -> None:
    """Write report.html and the model's card. A recipe with `generate:` may ask for it at any moment of its run."""
    _walk(recipe, "report", options)


@app.command
def chat(folder: Path, *, text: str | None = None, options: Options = _DEFAULTS) -> None:
    """Ask the student of a run folder: one --text, or line by line."""
    recipe_of(folder)
    from potstill.chat import answerer

    answer = answerer(folder / "model")
    if text is not None:
        console.out.print(console.clean(answer(text)))
        return
    if sys.stdin.isatty():
        console.out.print("Type a prompt; an empty line or Ctrl-D ends.")
    while (line := _ask_line()) is not None:
        console.out.print(console.clean(answer(line)))


@app.command
def runs(folder: Path = Path("runs"), *, options: Options = _DEFAULTS) -> None:
    """List the run folders and how far they are."""
    console.show_runs(folder, as_json=options.json)


def main() -> None:
    """Entry point of the `potstill` command."""
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # torch's huge pages: a large gradient has 500 times fewer faults
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
        stopped = Stopped("stopped", way_out="the same command goes on from here")
        quiet = not Process.this().first  # of several processes, all were stopped
        return stopped.exit_code if quiet else _failed(stopped, stopped.exit_code, as_json=as_json, debug=False)
    except CycloptsError as error:
        console.say_error(error, as_json=as_json, code=2)
        return 2
    except PotstillError as error:
        return _failed(error, error.exit_code, as_json=as_json, debug=debug)
    except Exception as error:
        # The last net: a full disk surfaces as many types, and what is left is our bug.
        if disk := as_disk_error(error):
            return _failed(disk, disk.exit_code, as_json=as_json, debug=debug)
        bug = PotstillError(
            f"potstill itself failed: {type(error).__name__}: {error}",
            way_out="run again with --debug and report the traceback",
        )
        return _failed(bug, 1, as_json=as_json, debug=debug)
    return 0


def _failed(error: Exception, code: int, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    console.say_error(error, as_json=as_json, code=code)
    return code


def _check_verb(arguments: Sequence[str]) -> None:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb not in ("train", "run", None):
        _for_one_process(f"'potstill {verb}'")


def _for_one_process(what: str) -> None:
    """Refuse it where torchrun started several, in one sentence of the first of them."""
    this = Process.this()
    if this.count == 1:
        return
    if not this.first:
        sys.exit(InputError.exit_code)
    raise InputError(
        f"torchrun started {this.count} processes, but {what} is for one",
        way_out="start it without torchrun; several serve `potstill train` and `run` of a recipe with 'generate:' and "
        "'student:'",
    )


def _walk(target: Path, through: Stage, options: Options) -> None:
    if target.exists() and _writes_data(target):
        _walk_data(target, through, options)
        return
    recipe, folder = _resolve(target, options)
    _for_one_process(f"the recipe '{target}'")
    from potstill import pipeline

    with console.watching(as_json=options.json) as watch:
        run = pipeline.distill(recipe, folder=folder, through=through, watch=watch)
    if through == "report" and not options.json:
        console.show_run(run)


def _walk_data(
    target: Path, stage: str | None, options: Options, *, limit: int | None = None, overrides: Sequence[str] = ()
) -> None:
    """One stage of a recipe of free text; None: every stage that it has a section for."""
    recipe, folder = _resolve_data(target, (*options.set, *overrides), options)
    first = Process.this().first
    for each in _data_stages(recipe, stage):
        if not first and each != "train":
            continue  # of several processes the first does what is not training, and `train` waits for it
        with console.watching(as_json=options.json) if first else console.silent() as watch:
            show = _data_stage(each, recipe, folder, limit, watch)
        if first:
            show(as_json=options.json)


def _data_stages(recipe: Recipe, stage: str | None) -> list[str]:
    """What is done: the stage alone, an exam with the report of it; None: all that the recipe has a section for."""
    if stage is not None:
        return [stage, "report"] if stage == "evaluate" else [stage]
    checks = "rescue" if recipe.rescue else "verify"  # rescue verifies too
    sections = {checks: recipe.verify, "train": recipe.student, "evaluate": recipe.evaluate}
    return ["generate", *(name for name, section in sections.items() if section), "report"]


def _data_stage(stage: str, recipe: Recipe, folder: Path, limit: int | None, watch: Watch) -> Callable[..., None]:
    """Do it; returns what shows the outcome."""
    from potstill import harvest

    match stage:
        case "generate":
            done = harvest.harvest(recipe, folder=folder, limit=limit, watch=watch)
            return partial(console.show_harvest, done)
        case "verify":
            found = harvest.sift(recipe, folder=folder, student_nats=_student_nats(recipe), watch=watch)
            return partial(console.show_sift, found, rescue=recipe.rescue is not None)
        case "rescue":
            from potstill.rescue import rescue

            found = rescue(recipe, folder=folder, student_nats=_student_nats(recipe), watch=watch)
            return partial(console.show_sift, found, rescue=True)
        case "train":
            from potstill import lessons  # torch takes seconds

            return partial(console.show_student, lessons.teach(recipe, folder=folder, watch=watch))
        case "report":
            from potstill.report.free_text import write_data_report

            return partial(console.show_report, write_data_report(folder, watch=watch))
        case _:
            from potstill import lessons

            return partial(console.show_exam, lessons.examine(recipe, folder=folder, watch=watch))


def _student_nats(recipe: Recipe) -> Nats | None:
    if recipe.select.prefer != "learnable":
        return None
    from potstill import lessons  # torch takes seconds

    return lessons.student_nats(recipe)


def _check_data(target: Path, asked: int | None, as_if: int | None, options: Options) -> None:
    from potstill.data_plan import as_probed, plan_data, probe

    recipe, folder = _resolve_data(target, options.set, options)
    plan = plan_data(recipe, as_if=as_if)
    probed = None
    if asked is not None:
        with console.watching(as_json=options.json) as watch:
            probed = probe(recipe, folder, asked, total=plan.prompts, watch=watch)
        plan = as_probed(plan, probed)
    console.show_data_plan(plan, probed, as_json=options.json)


def _writes_data(target: Path) -> bool:
    inside = target / "recipe.yaml"
    return is_data_recipe(inside if inside.is_file() else target)


def _resolve_data(target: Path, overrides: Sequence[str], options: Options) -> tuple[Recipe, Path]:
    if target.is_dir():
        return load_recipe(target / "recipe.yaml", overrides), options.run or target
    recipe = load_recipe(target, overrides)
    return recipe, options.run or Path("runs") / recipe.name


def _resolve(target: Path, options: Options) -> tuple[ChoiceRecipe, Path]:
    """A recipe file, or a run folder with its own recipe."""
    if target.is_dir() and (target / "recipe.yaml").is_file():
        return load_choice_recipe(target / "recipe.yaml", options.set), options.run or target
    recipe = load_choice_recipe(target, options.set)
    return recipe, options.run or Path("runs") / recipe.name


def _ask_line() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return line or None
