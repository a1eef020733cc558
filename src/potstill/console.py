"""What people and programs see: progress, tables, and one sentence when something is wrong."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from potstill.dispatch.money import DOLLAR
from potstill.live import Readings, duration, in_words
from potstill.records import Progress, Watch, unwatched
from potstill.store.requests import glance

if TYPE_CHECKING:  # names of types alone: `--help` and `runs` need not wait for what only the other verbs use
    from potstill.data_plan import DataPlan, Probed
    from potstill.harvest import Harvest
    from potstill.licences import Policy
    from potstill.plan import Plan
    from potstill.sizing.job import Sizes
    from potstill.store.run import Run
    from potstill.verify.answers import Verified

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_interrupted = Event()
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Model text without escape sequences, bidi controls and rich markup."""
    return escape(_CONTROL.sub("", text))


@contextmanager
def watching(*, as_json: bool) -> Generator[Watch]:
    """A Watch: JSON lines for programs, live bars on a terminal, else a line a stage and every 30 seconds."""
    if as_json:
        yield _heeding(_json_line)
    elif out.is_terminal:
        with _bars() as bars:
            yield _heeding(_Live(bars))
    else:
        yield _heeding(_Plain())


@contextmanager
def silent() -> Generator[Watch]:
    """The Watch of a process beside the first one: it only heeds Ctrl-C."""
    yield _heeding(unwatched)


def interrupt(_number: int, _frame: object) -> None:
    """The handler of SIGINT and SIGTERM. The exception alone can get lost, where it is raised in the middle of somebody
    else's callback: whoever reports progress next is stopped all the same."""
    _interrupted.set()
    raise KeyboardInterrupt


def _heeding(watch: Watch) -> Watch:
    def heed(progress: Progress) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        watch(progress)

    return heed


def say_error(error: Exception, *, as_json: bool, code: int) -> None:
    """One sentence on stderr."""
    said = " ".join(str(error).split())
    if as_json:
        sys.stderr.write(json.dumps({"error": said, "exit_code": code}) + "\n")
    else:
        err.print(f"[bold red]error:[/] {clean(said)}", soft_wrap=True)


def say_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def show_plan(plan: Plan) -> None:
    recipe = plan.recipe
    table = Table(title=f"Plan of '{recipe.name}' (estimates)", title_justify="left")
    for column in ("stage", "what", "tokens", "time", "memory"):
        table.add_column(column, justify="right" if column in ("tokens", "time", "memory") else "left")
    splits = ", ".join(f"{count} {name}" for name, count in plan.prompts.items())
    table.add_row("prompts", f"{splits} from {clean(recipe.prompts.source)}", "", "", "")
    for work in plan.work:
        spent = "?" if work.seconds is None else duration(work.seconds)
        memory = "?" if work.memory is None else f"{work.memory / 2**30:.1f} GiB"
        table.add_row(work.stage, clean(work.what), f"~{work.tokens:,}", f"~{spent}", f"~{memory}")
    out.print(table)
    if plan.teacher and plan.student_parameters:
        ratio = plan.teacher.parameters / plan.student_parameters
        out.print(
            f"student: {plan.student_parameters / 1e6:.1f} M parameters, {recipe.student.layers} of "
            f"{plan.teacher.layers} layers, {ratio:.1f} times smaller than the teacher"
        )
    _show_terms(plan.licences, plan.left_out)


def _show_terms(licences: Mapping[str, Policy], left_out: Mapping[str, int]) -> None:
    for licence, policy in licences.items():
        out.print(f"licence of {clean(licence)}: {policy.verdict}{f' ({policy.duties})' if policy.duties else ''}")
    for reason, count in left_out.items():
        out.print(f"left out: {count:,} rows, {clean(reason)}")


def show_run(run: Run) -> None:
    """The small table at the end, and what to try next."""
    scores = run.read_scores()
    assert scores is not None
    table = Table(title=f"{run.recipe.name}: {run.folder}", title_justify="left")
    for column in ("arm", "accuracy", "95 %", "agreement", "prompts/s", "parameters"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, metrics in scores["arms"].items():
        low, high = metrics["accuracy"]["ci95"]
        table.add_row(
            arm,
            f"{metrics['accuracy']['value']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{metrics['agreement']['value']:.1%}",
            _value(metrics, "prompts_per_second", "{:,.1f}"),
            _value(metrics, "parameters", "{:,.0f}"),
        )
    out.print(table)
    out.print("next:")
    for command, why in (
        (f"xdg-open {run.report}", "the report"),
        (f"potstill chat {run.folder}", "ask the student something"),
        ("cp recipes/quickstart.yaml mine.yaml", "a recipe of your own"),
    ):
        out.print(f"  [bold]{clean(command)}[/]   {why}")


def show_data_plan(plan: DataPlan, probed: Probed | None, *, as_json: bool) -> None:
    """What will be asked, and what it can cost."""
    from potstill.sizing.spoken import values  # numpy: `--help` need not wait for it

    if as_json:
        facts = {"requests": plan.requests, "tokens_read": plan.tokens_read, "dollars_at_most": plan.dollars}
        estimate = {"tokens_written": probed.tokens_written, "dollars": probed.dollars} if probed else None
        known = {"licences": list(plan.licences), "estimate": estimate}
        sizes = values(plan.sizes) if plan.sizes else None
        say_json({"name": plan.recipe.name, "prompts": plan.prompts, **facts, **known, "sizes": sizes})
        return
    how = plan.recipe.generate
    as_if = "" if plan.prompts == plan.found else f" (as if: there are {plan.found:,})"
    asked = f"{plan.prompts:,} prompts{as_if} x {how.n} answers by {clean(plan.recipe.teacher.model)}"
    out.print(asked, soft_wrap=True)
    out.print(f"tokens: ~{plan.tokens_read:,} read, at most {plan.tokens_written:,} written", soft_wrap=True)
    cap = "no budget" if how.budget is None else f"budget ${how.budget:,.2f}"
    price = f"at most ${plan.dollars:,.2f}" if how.prices else "no price file, so not counted"
    out.print(f"money: {price}, {cap}", soft_wrap=True)
    for judge in plan.recipe.verify.judges if plan.recipe.verify else ():
        cap = "no budget" if judge.budget is None else f"budget ${judge.budget:,.2f}"
        out.print(f"{clean(judge.name)}: {clean(judge.teacher.model)}, beyond that, {cap}", soft_wrap=True)
    if (again := plan.recipe.rescue) is not None:
        most = "no budget, not counted" if again.budget is None else f"at most ${again.budget:,.2f}"
        out.print(f"rescue of prompts without a passed answer, beyond that: {most}", soft_wrap=True)
    if probed:
        (low, middle, high), (least, cost, most) = probed.tokens_written, probed.dollars
        out.print(
            f"probe of {probed.prompts:,} prompts ({probed.answers:,} answers, kept): all will write about "
            f"{middle:,.0f} tokens ({low:,.0f} to {high:,.0f}) and cost about ${cost:,.2f} (${least:,.2f} to "
            f"${most:,.2f}), if the first prompts are like the others",
            soft_wrap=True,
        )
    own = plan.recipe.train.on_policy
    if own is not None and own.engine is not None:
        out.print(
            f"own answers: written by vLLM at {clean(own.engine.url)}; train puts the student where it finds it, and "
            "says how to start it",
            soft_wrap=True,
        )
    if plan.sizes is not None:
        _show_sizes(
            plan.sizes, answers="answers as long as the probe's" if probed else "answers as long as they may be"
        )
    _show_terms(plan.licences, plan.left_out)


def _show_sizes(sizes: Sizes, *, answers: str) -> None:
    """The models, and what training them takes where."""
    from potstill.sizing.spoken import ASSUMED, COLUMNS, advice, row, sentences  # numpy, as above

    for said in sentences(sizes):
        out.print(clean(said), soft_wrap=True)
    if sizes.fits:
        table = Table(*(Column(name, no_wrap=True, justify="right") for name in COLUMNS))
        for fit in sizes.fits:
            table.add_row(*row(fit))
        out.print(table)
        for said in advice(sizes):
            out.print(said, soft_wrap=True)
        out.print(ASSUMED.format(answers=answers), soft_wrap=True)


def show_harvest(found: Harvest, *, as_json: bool) -> None:
    """What the teacher's answers came to, and where they are."""
    totals = found.totals
    if as_json:
        say_json({"folder": str(found.folder), "answers": found.exported, "prompts": found.prompts} | totals)
        return
    settled = ", ".join(f"{n:,} {how}" for how, n in sorted(found.settled.items())) or "none"
    out.print(f"{found.exported:,} answers in {clean(str(found.answers))}")
    out.print(f"prompts: {found.prompts:,} ({settled})", soft_wrap=True)
    out.print(
        f"tokens: {totals.get('prompt tokens', 0):,} read, {totals.get('completion tokens', 0):,} written, "
        f"in {totals.get('attempts', 0):,} requests",
        soft_wrap=True,
    )
    money = {name: totals.get(name, 0) / DOLLAR for name in ("paid", "wasted", "maybe")}
    out.print(
        f"spent: ${money['paid']:.4f}, possibly paid beyond that: ${money['maybe']:.4f} "
        f"({totals.get('maybe attempts', 0):,} requests whose outcome is not known), wasted: ${money['wasted']:.4f}",
        soft_wrap=True,
    )
    for name in sorted(name for name in totals if name.startswith("failure: ")):
        out.print(f"{name.removeprefix('failure: ')}: {totals[name]:,} requests", soft_wrap=True)


def show_sift(found: Verified, *, rescue: bool, as_json: bool) -> None:
    """What became of the answers, and where the good ones are; `rescue`: whether the recipe has that section."""
    if as_json:
        reasons = dict(found.reasons.most_common())
        kept = {"selected": str(found.selected), "reasons": reasons, "prompts": dict(found.prompts)}
        say_json({**kept, "pairs": found.pairs, "judges": {name: dict(sums) for name, sums in found.judges.items()}})
        return
    total = found.reasons.total()
    out.print(f"{found.kept:,} of {total:,} answers kept in {clean(str(found.selected))}", soft_wrap=True)
    for reason, count in found.left_out:
        out.print(f"  {count:>9,} ({count / total:.1%})  {clean(reason)}", soft_wrap=True)
    for name, totals in found.judges.items():
        spent = (totals.get("paid", 0) + totals.get("maybe", 0)) / DOLLAR
        out.print(f"{clean(name)}: {totals.get('attempts', 0):,} requests in all, ${spent:.4f}", soft_wrap=True)
    lost, silent = found.prompts["lost"] + found.prompts["unanswered"], found.prompts["unanswered"]
    without = f" ({silent:,} of them without an answer to judge)" if silent else ""
    out.print(f"prompts without a kept answer: {lost:,} of {found.prompts.total():,}{without}", soft_wrap=True)
    if rescue:
        out.print(f"rescued prompts: {found.prompts['rescued']:,} (potstill rescue asks again)", soft_wrap=True)


def show_export(files: Mapping[Path, int], *, as_json: bool) -> None:
    if as_json:
        say_json({"files": {str(path): rows for path, rows in files.items()}})
        return
    for path, rows in files.items():
        out.print(f"{rows:,} rows in {clean(str(path))}", soft_wrap=True)


def show_student(model: Path, *, as_json: bool) -> None:
    if as_json:
        say_json({"model": str(model)})
    else:
        out.print(f"student: {clean(str(model))}", soft_wrap=True)


def show_exam(scores: Mapping[str, Any], *, as_json: bool) -> None:
    """Pass rates with intervals, and the student's distance to the others."""
    if as_json:
        say_json(dict(scores))
        return
    table = Table(title="exam", title_justify="left")
    for column in ("arm", "right", "95 % interval", "most frequent mistake"):
        table.add_column(column)
    for arm, found in scores["arms"].items():
        rate = found["pass_rate"]
        low, high = rate["ci95"]
        worst = next((f"{reason} ({n:,})" for reason, n in found["wrong"].items()), "-")
        table.add_row(clean(arm), f"{rate['value']:.1%}", f"{low:.1%} to {high:.1%}", clean(worst))
    out.print(table)
    for name, found in scores["paired"].items():
        low, high = found["pass_rate"]["ci95"]
        out.print(f"{name}: {found['pass_rate']['value']:+.1%} ({low:+.1%} to {high:+.1%})", soft_wrap=True)


def show_report(page: Path, *, as_json: bool) -> None:
    if as_json:
        say_json({"report": str(page)})
    else:
        out.print(f"report: {clean(str(page))}", soft_wrap=True)


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
    scores_file = folder / "scores.json"
    arms: Mapping[str, Any] = json.loads(scores_file.read_text()).get("arms", {}) if scores_file.is_file() else {}
    done = [name for name, path in (("report", "report.html"), ("train", "model")) if (folder / path).exists()]
    right = {arm: _right(arms.get(arm, {})) for arm in ("student", "teacher")}
    asked = glance(folder)
    answers = "-"
    if asked and asked["prompts"]:
        spent = (asked.get("paid", 0) + asked.get("maybe", 0)) / DOLLAR
        answers = f"{asked['settled']:,} of {asked['prompts']:,} prompts" + (f", ${spent:,.2f}" if spent else "")
        done += ["generate"] if asked["settled"] == asked["prompts"] else []
    return {"run": folder.name, "finished": done[0] if done else "-", "answers": answers, **right}


def _right(metrics: Mapping[str, Any]) -> str:
    """The share of test prompts an arm answered rightly, whichever kind of recipe it belongs to."""
    found = metrics.get("accuracy") or metrics.get("pass_rate")
    return f"{found['value']:.1%}" if found else "-"


def _value(metrics: Mapping[str, Any], name: str, form: str) -> str:
    return form.format(metrics[name]["value"]) if name in metrics else "-"


def _json_line(progress: Progress) -> None:
    say_json(
        {
            "stage": progress.stage,
            "what": progress.what,
            "done": progress.done,
            "total": progress.total,
            "note": progress.note,
            **({"facts": progress.facts} if progress.facts else {}),
        }
    )
    sys.stdout.flush()


def _bars() -> Readings:
    return Readings(
        TextColumn("[bold]{task.fields[stage]:<9}"),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
    )


class _Live:
    """A bar for everything that is counted, and the readings of what is training."""

    def __init__(self, bars: Readings) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, p: Progress) -> None:
        key = (p.stage, p.what)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(clean(p.what), stage=p.stage, note="", total=p.total)
            self._bars.facts = {}
        if p.stage == "train":
            self._bars.facts = {**self._bars.facts, **p.facts}
        self._bars.update(self._tasks[key], completed=p.done, total=p.total, note=clean(p.note))


class _Plain:
    """A line when something begins, ends, or has been going for another 30 seconds."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def __call__(self, p: Progress) -> None:
        key, now = (p.stage, p.what), time.monotonic()
        if p.done < p.total and now - self._last.get(key, -1e9) < 30:
            return
        self._last[key] = now
        said = f"{p.note}, {in_words(p.facts)}" if p.stage == "train" and p.facts else p.note
        out.print(f"{p.stage:<9} {clean(p.what)}  {p.done:,}/{p.total:,}  {clean(said)}", soft_wrap=True)
