"""What a run will take, as `potstill check` says it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Column, Table

from potstill.console.live import duration
from potstill.console.outcomes import show_source
from potstill.console.output import clean, out, say, say_json
from potstill.recipe.task import Choice

if TYPE_CHECKING:  # names of types alone: numpy is for those who plan
    from potstill.plan import Plan
    from potstill.sizing.job import Sizes

_PROBABILITIES = {
    "computed here": "computed in this process",
    "prompt_logprobs": "each choice is scored as a continuation by the server (prompt_logprobs)",
    "completions": "the server continues the prompt by one token (completions)",
    "top_logprobs": "read from the first token of a chat reply (top_logprobs)",
    "votes": "estimated from the votes of {n} answers to each prompt",
}


def show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        _say_values(plan)
        return
    recipe = plan.recipe
    splits = ", ".join(f"{count:,} {split}" for split, count in plan.prompts.items())
    as_if = "" if plan.prompts == plan.found else f" (as if: there are {plan.found['train']:,} train)"
    say(f"prompts: {splits}{as_if}")
    show_source(plan.how_read, plan.left_out)
    say(f"teacher: {plan.requests:,} answers by {clean(recipe.teacher.model)}")
    if plan.probabilities is not None:
        say(f"probabilities of the choices: {_PROBABILITIES[plan.probabilities].format(n=recipe.generate.n)}")
    say(f"tokens: ~{plan.tokens_read:,} read, at most {plan.tokens_written:,} written")
    _show_money(plan)
    _show_work(plan)
    own = recipe.train.on_policy
    if own is not None and own.engine is not None:
        say(
            f"own answers: written by vLLM at {clean(own.engine.url)}; train puts the student where it finds it, and "
            "says how to start it"
        )
    say(f"precision: {plan.precision}")
    if plan.sizes is not None:
        _show_sizes(plan.sizes, answers=_answers(plan))
    for model, paths in plan.paths.items():
        say(f"self-test of {clean(model)}: {clean(paths)}")
    for licence, policy in plan.licences.items():
        say(f"licence of {clean(licence)}: {policy.verdict}{f' ({policy.duties})' if policy.duties else ''}")


def _say_values(plan: Plan) -> None:
    from potstill.sizing.spoken import values

    estimate = plan.probed and {"tokens_written": plan.probed.tokens_written, "dollars": plan.probed.dollars}
    say_json(
        {
            "name": plan.recipe.name,
            "task": plan.recipe.task.kind,
            "prompts": plan.prompts,
            "left_out": plan.left_out,
            "how_read": plan.how_read,
            "requests": plan.requests,
            "tokens_read": plan.tokens_read,
            "tokens_written_at_most": plan.tokens_written,
            "dollars_at_most": plan.dollars,
            "estimate": estimate,
            "probabilities": plan.probabilities,
            "precision": plan.precision,
            "self_tests": dict(plan.paths),
            "work": [asdict(work) for work in plan.work],
            "sizes": values(plan.sizes) if plan.sizes else None,
            "licences": {licence: asdict(policy) for licence, policy in plan.licences.items()},
        }
    )


def _show_money(plan: Plan) -> None:
    recipe = plan.recipe
    price = f"at most ${plan.dollars:,.2f}" if recipe.generate.prices else "no price file, so not counted"
    say(f"money: {price}, {_budget(recipe.generate.budget)}")
    for judge in recipe.verify.judges if recipe.verify else ():
        say(f"{clean(judge.name)}: {clean(judge.teacher.model)}, beyond that, {_budget(judge.budget)}")
    if (again := recipe.rescue) is not None:
        say(f"rescue of prompts without a passed answer, beyond that, {_budget(again.budget)}")
    if recipe.evaluate is not None and recipe.generate.prices:
        say(f"the teacher's answers to test prompts, beyond that, {_budget(recipe.evaluate.budget)}")
    if (probed := plan.probed) is not None:
        (low, middle, high), (least, cost, most) = probed.tokens_written, probed.dollars
        say(
            f"probe of {probed.prompts:,} prompts ({probed.answers:,} answers, kept): all will write about "
            f"{middle:,.0f} tokens ({low:,.0f} to {high:,.0f}) and cost about ${cost:,.2f} (${least:,.2f} to "
            f"${most:,.2f}), if the first prompts are like the others"
        )


def _budget(budget: float | None) -> str:
    return "no budget" if budget is None else f"budget ${budget:,.2f}"


def _show_work(plan: Plan) -> None:
    table = Table(
        "stage", "what", *(Column(name, justify="right") for name in ("tokens", "time on this CPU", "memory"))
    )
    for work in plan.work:
        spent = "-" if work.seconds is None else f"~{duration(work.seconds)}"
        memory = "-" if work.memory is None else f"~{work.memory / 2**30:.1f} GiB"
        table.add_row(work.stage, clean(work.what), f"~{work.tokens:,}", spent, memory)
    out.print(table)


def _answers(plan: Plan) -> str:
    if isinstance(plan.recipe.task, Choice):
        return "answers as long as the choices"
    return "answers as long as the probe's" if plan.probed else "answers as long as they may be"


def _show_sizes(sizes: Sizes, *, answers: str) -> None:
    """The models, and what training the student takes where."""
    from potstill.sizing.spoken import ASSUMED, COLUMNS, advice, row, sentences

    for said in sentences(sizes):
        say(clean(said))
    if sizes.fits:
        table = Table(*(Column(name, no_wrap=True, justify="right") for name in COLUMNS))
        for fit in sizes.fits:
            table.add_row(*row(fit))
        out.print(table)
        for said in advice(sizes):
            say(said)
        say(ASSUMED.format(answers=answers))
