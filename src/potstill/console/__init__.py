"""What people and programs see: progress, tables, and one sentence when something is wrong."""

from potstill.console.outcomes import show_exported, show_generated, show_report, show_trained, show_verified
from potstill.console.output import clean, err, out, say, say_error, say_json
from potstill.console.plan import show_plan
from potstill.console.progress import interrupt, watching
from potstill.console.scores import show_run, show_runs, show_scores

__all__ = [
    "clean",
    "err",
    "interrupt",
    "out",
    "say",
    "say_error",
    "say_json",
    "show_exported",
    "show_generated",
    "show_plan",
    "show_report",
    "show_run",
    "show_runs",
    "show_scores",
    "show_trained",
    "show_verified",
    "watching",
]
