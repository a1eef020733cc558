"""The stage `report`: report.html, and the card of every model, from what the run folder holds at that moment."""

from __future__ import annotations

from pathlib import Path

from potstill.records import Progress, Watch
from potstill.report.card import render_card
from potstill.report.gather import RunReport, gather
from potstill.report.page import render_page
from potstill.store.files import write_atomic
from potstill.store.run import RunFolder


def write_report(run: RunFolder, *, watch: Watch) -> Path:
    """Raises InputError where there is no run."""
    report = gather(run)
    write_atomic(run.report, render_page(report))
    write_cards(run, report)
    watch(Progress(stage="report", what="report.html", done=1, total=1))
    return run.report


def write_cards(run: RunFolder, report: RunReport | None = None) -> None:
    """The card of every model that there is: what its licences ask travels with it from the start."""
    report = report or gather(run)
    for arm in report.trained:
        if (model := run.arm_model(arm)).is_dir():
            write_atomic(model / "README.md", render_card(report, arm))
