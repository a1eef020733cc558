"""The report stage: gather what the run folder holds, write report.html and the model's card."""

from __future__ import annotations

import json
import platform

from potstill.licences import check_licence
from potstill.recipe import file as recipe_file
from potstill.recipe.choices import ChoiceRecipe
from potstill.records import Progress, Watch
from potstill.report.card import render_card
from potstill.report.data import PACKAGES, installed
from potstill.report.page import ReportData, render_page
from potstill.store.files import write_atomic
from potstill.store.ledger import Ledger
from potstill.store.run import Run


def write_report(run: Run, ledger: Ledger, watch: Watch) -> None:
    data = gather(run, ledger)
    write_atomic(run.report, render_page(data))
    write_atomic(run.model / "README.md", render_card(data))
    watch(Progress(stage="report", what="report.html", done=1, total=1))


def gather(run: Run, ledger: Ledger) -> ReportData:
    metrics = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    scores = run.read_scores()
    assert scores is not None
    return ReportData(
        recipe=run.recipe,
        recipe_yaml=recipe_file.as_yaml(run.recipe),
        scores=scores,
        metrics=[json.loads(line) for line in metrics],
        prompts={p.id: p for p in ledger.prompts()},
        left_out=ledger.counts("prompts"),
        verdicts=ledger.verdicts(),
        predictions={arm: ledger.predictions(arm) for arm in scores["arms"]},
        stage_seconds=ledger.stage_seconds(),
        versions={"python": platform.python_version(), **{p: installed(p) for p in PACKAGES}},
        licence_duties=_duties(run.recipe),
    )


def _duties(recipe: ChoiceRecipe) -> list[str]:
    pairs = (
        ("teacher.licence", recipe.teacher.licence),
        ("prompts.licence", recipe.prompts.licence),
    )
    if recipe.encoder and recipe.encoder.licence:
        pairs = (*pairs, ("encoder.licence", recipe.encoder.licence))
    policies = [(licence, check_licence(licence, key=key)) for key, licence in pairs]
    return [f"{licence}: {policy.duties}" for licence, policy in policies if policy.duties]
