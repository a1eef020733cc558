"""How the arms stand: after an evaluation, at the end of a run, and in the list of all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from potstill.console.output import clean, out, say, say_json
from potstill.dispatch.money import DOLLAR
from potstill.report.wording import ANSWERS_ALONE
from potstill.store.requests import glance

if TYPE_CHECKING:  # the name of a type alone
    from potstill.pipeline import Run

_COLUMNS = {
    "agreement": ("agreement", "{:.1%}"),
    "prompts_per_second": ("prompts/s", "{:,.1f}"),
    "parameters": ("parameters", "{:,.0f}"),
}


def show_scores(scores: Mapping[str, Any], *, as_json: bool) -> None:
    """Accuracy of every arm with its interval, and the student's distance to the others."""
    if as_json:
        say_json(dict(scores))
        return
    arms, wrong = scores["arms"], scores.get("wrong") or {}
    measured = [name for name in _COLUMNS if any(name in metrics for metrics in arms.values())]
    table = Table(title=f"{clean(scores['recipe'])}: test prompts", title_justify="left")
    table.add_column("arm")
    for title in ("accuracy", "95 %", *(_COLUMNS[name][0] for name in measured)):
        table.add_column(title, justify="right")
    if wrong:
        table.add_column("most frequent mistake")
    for arm, metrics in arms.items():
        low, high = metrics["accuracy"]["ci95"]
        accuracy = (f"{metrics['accuracy']['value']:.1%}", f"{low:.1%} to {high:.1%}")
        mistake = next((f"{reason} ({n:,})" for reason, n in wrong.get(arm, {}).items()), "-")
        rest = [_value(metrics, name) for name in measured]
        table.add_row(clean(arm), *accuracy, *rest, *([clean(mistake)] if wrong else []))
    out.print(table)
    alone = arms.get("student", {}).get("exact_answers", {}).get("value")
    if alone is not None and alone < ANSWERS_ALONE:
        say(f"the student does not answer on its own: {alone:.1%} of what it writes is an allowed answer that ends")
    for name, found in scores["paired"].items():
        low, high = found["accuracy"]["ci95"]
        say(f"{clean(name)}: {found['accuracy']['value']:+.1%} ({low:+.1%} to {high:+.1%})")


def show_run(run: Run, *, as_json: bool) -> None:
    """The closing table: what was kept, how the arms stand, and what to try next."""
    folder, scores = run.folder, run.read_scores()
    kept = {path.stem: rows for path in (folder.selected, folder.verdicts) if (rows := _rows(path)) is not None}
    if as_json:
        say_json({"folder": str(folder.path), "report": str(folder.report), **kept, "scores": scores})
        return
    if kept:
        say(f"{kept['selected']:,} of {kept['verdicts']:,} answers kept in {clean(str(folder.selected))}")
        if run.recipe.rescue is not None:
            say(f"rescued prompts: {_rescued(folder.selected):,}")
    elif (answers := _rows(folder.answers)) is not None:
        say(f"{answers:,} answers in {clean(str(folder.answers))}")
    if scores is not None:
        show_scores(scores, as_json=False)
    here = clean(str(folder.path))
    say("next:")
    say(f"  [bold]xdg-open {clean(str(folder.report))}[/]   the report")
    if folder.model.is_dir():
        say(f"  [bold]potstill chat {here}[/]   ask the student something")
    else:
        say(f"  [bold]potstill export {here}[/]   the answers for other programs")
    say(f"  [bold]cp {clean(str(folder.recipe))} mine.yaml[/]   a recipe of your own")


def show_runs(folder: Path, *, as_json: bool) -> None:
    rows = [_state(path.parent) for path in sorted(folder.glob("*/recipe.yaml"))]
    if as_json:
        say_json(rows)
        return
    table = Table(title=str(folder), title_justify="left")
    columns = ("run", "finished", "answers", "student", "teacher")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(clean(str(row[key])) for key in columns))
    out.print(table if rows else f"no runs in '{folder}' yet; start one with: potstill run recipes/quickstart.yaml")


def _state(folder: Path) -> dict[str, Any]:
    scores = folder / "scores.json"
    arms: Mapping[str, Any] = json.loads(scores.read_text(encoding="utf-8"))["arms"] if scores.is_file() else {}
    done = [name for name, path in (("report", "report.html"), ("train", "model")) if (folder / path).exists()]
    right = {arm: f"{arms[arm]['accuracy']['value']:.1%}" if arm in arms else "-" for arm in ("student", "teacher")}
    asked = glance(folder)
    answers = "-"
    if asked and asked["prompts"]:
        spent = (asked.get("paid", 0) + asked.get("maybe", 0)) / DOLLAR
        answers = f"{asked['settled']:,} of {asked['prompts']:,} prompts" + (f", ${spent:,.2f}" if spent else "")
        done += ["generate"] if asked["settled"] == asked["prompts"] else []
    return {"run": folder.name, "finished": done[0] if done else "-", "answers": answers, **right}


def _value(metrics: Mapping[str, Any], name: str) -> str:
    return _COLUMNS[name][1].format(metrics[name]["value"]) if name in metrics else "-"


def _rows(table: Path) -> int | None:
    if not table.is_file():
        return None
    import pyarrow.parquet as pq  # a tenth of a second, which `runs` does without

    return pq.read_metadata(table).num_rows


def _rescued(selected: Path) -> int:
    """Prompts whose kept answers a rescue brought."""
    import pyarrow.parquet as pq

    rows = pq.read_table(selected, columns=["prompt_id", "rescue"]).to_pylist()
    return len({row["prompt_id"] for row in rows if row["rescue"]})
