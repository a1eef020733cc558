"""The student of a data recipe: taught on the kept answers, examined beside its teacher. It is what `potstill train`,
`evaluate` and `run` do with a recipe that has a `student:` section.

An exam is a run of its own for every arm, in `exam/ARM/`: answers are in a ledger and never asked for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.engines.likelihood import mean_nats
from potstill.errors import InputError
from potstill.evaluate.exam import Paper, compare_papers, marked
from potstill.harvest import check_sections, harvest, silent_prompts
from potstill.models.load import device
from potstill.recipe.evaluate import Evaluate
from potstill.recipe.generate import Generate
from potstill.recipe.select import Select
from potstill.recipe.student import Student
from potstill.recipe.teacher import Local, Teacher
from potstill.recipe.whole import Recipe
from potstill.records import Finding, Message, Progress, Prompt, Sample, Watch, unwatched
from potstill.report.wording import weights_kept
from potstill.store.answers import read_weighted
from potstill.store.files import write_atomic
from potstill.store.metrics import Metrics
from potstill.store.requests import Requests
from potstill.store.run import open_data_run
from potstill.text.tokens import Ids
from potstill.train.advantages import Reward
from potstill.train.answers import train_student
from potstill.train.untaught import Untaught, save, untaught
from potstill.train.world import World, joined
from potstill.verify.answers import Nats
from potstill.verify.workers import checking_workers


def teach(recipe: Recipe, *, folder: Path | None = None, watch: Watch = unwatched) -> Path:
    """Train the student on the kept answers; returns its model folder. Finished work is not done again."""
    learner, place = _learner(recipe), folder or Path("runs") / recipe.name
    check_sections(recipe)
    with joined(recipe.train) as world:
        return _teach(recipe, learner, place, watch, world)


def _teach(recipe: Recipe, learner: Student, place: Path, watch: Watch, world: World) -> Path:
    kept = place / "examples" / ("answers.parquet" if recipe.verify is None else "selected.parquet")
    if not kept.is_file():
        verb = "generate" if recipe.verify is None else "verify"
        raise InputError(f"'{place}' holds no kept answers yet", way_out=f"potstill {verb} first")
    rewards = recipe.train.on_policy is not None and recipe.train.on_policy.reward is not None
    values = recipe.model_dump(mode="json", include={"student", "train", "seed", *(["verify"] if rewards else [])})
    del values["train"]["report_to"]  # curves that are drawn elsewhere too make no other student
    if own := values["train"]["on_policy"]:
        own["engine"] = own["engine"] is not None  # nor does another address of the server that writes
    fingerprint = hashlib.sha256(kept.read_bytes() + json.dumps(values, sort_keys=True).encode()).hexdigest()
    with open_data_run(place, recipe) if world.first else nullcontext() as requests:
        if world.told(lambda: _taught(place) == fingerprint):
            watch(Progress(stage="train", what="student", done=1, total=1, note="already done"))
            return place / "model"
        if world.first:
            (place / "student.json").unlink(missing_ok=True)  # from here on `model` may be either student
        conversations = list(read_weighted(kept))
        start = untaught(learner, [talk for talk, _ in conversations], seed=recipe.seed, loads_on=world.loads_on)
        asks_checks = rewards or recipe.train.predict_with_generate
        with rewarding(recipe, requests) if asks_checks and requests else nullcontext() as reward:
            fitted = train_student(
                recipe,
                start,
                conversations,
                place=place,
                fingerprint=fingerprint,
                reward=reward,
                watch=watch,
                world=world,
            )
        if not world.first:
            return place / "model"
        write_atomic(place / "model" / "README.md", _model_card(recipe, start, len(conversations), place))
        answers, layers = len(conversations), list(start.layers)
        done = {"fingerprint": fingerprint, "answers": answers, "layers": layers, **asdict(fitted)}
        write_atomic(place / "student.json", json.dumps(done, indent=1))
    return place / "model"


def student_nats(recipe: Recipe) -> Nats | None:
    """What `select.prefer: learnable` asks the student before its first step: mean nats per token of each answer (its
    reasoning too where that is learnt) and of the end of the turn, in the student's own template. None where the recipe
    does not ask for it."""
    if recipe.select.prefer != "learnable":
        return None
    start = untaught(_learner(recipe), seed=recipe.seed)
    model, codec = start.model.to(device()), start.codec  # pyright: ignore[reportArgumentType]
    reasoning = recipe.train.learn == "reasoning and answer"

    def nats(answers: Sequence[tuple[Prompt, Sample]]) -> list[float | None]:
        found: list[float | None] = [None] * len(answers)
        rows: list[tuple[int, Ids, Ids]] = []
        for at, (prompt, sample) in enumerate(answers):
            thought = sample.reasoning if reasoning else None
            said = Message(role="assistant", content=sample.text, reasoning_content=thought)
            if codec.control_token([*prompt.messages, said]) is None:
                rows.append((at, codec.prefix(prompt.messages), codec.turn(prompt.messages, said)))
        scored = mean_nats(model, [(prefix, target) for _, prefix, target in rows])
        for (at, _, _), value in zip(rows, scored, strict=True):
            found[at] = value
        return found

    return nats


@contextmanager
def rewarding(recipe: Recipe, requests: Requests) -> Generator[Reward]:
    """What `train.on_policy.reward` and `train.predict_with_generate` ask: the recipe's checks of one answer, in
    processes that live as long as the training."""
    assert recipe.verify is not None
    prompts = (prompt for prompt, _ in requests.samples())
    known = {_words(p.messages): p for p in chain(prompts, silent_prompts(recipe, requests))}

    with checking_workers(recipe.verify.alone, processes=recipe.verify.processes) as look:

        def reward(answers: Sequence[tuple[Sequence[Message], Sample]]) -> list[float | None]:
            asked: list[tuple[Prompt, Sample]] = []
            for messages, sample in answers:
                if (prompt := known.get(_words(messages))) is None:
                    raise InputError(
                        f"a kept answer's prompt is not in the recipe any more: {messages[-1].content[:80]!r}",
                        way_out="potstill verify first",
                    )
                asked.append((prompt, replace(sample, prompt_id=prompt.id)))
            return [_mark(sample, findings) for _, sample, findings in look(asked)]

        yield reward


def _words(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content) for message in messages)


def _mark(sample: Sample, findings: Sequence[Finding]) -> float | None:
    opinions = {finding.opinion for finding in findings}
    if sample.cut_off or "failed" in opinions:
        return 0.0
    return None if "undecided" in opinions else 1.0


def examine(recipe: Recipe, *, folder: Path | None = None, watch: Watch = unwatched) -> dict[str, Any]:
    """Let teacher, student and base (the student before its first step) answer the exam's prompts; writes scores.json
    and returns it."""
    learner, place = _learner(recipe), folder or Path("runs") / recipe.name
    exam = recipe.evaluate
    if exam is None:
        raise InputError("the recipe has no 'evaluate' section", way_out="add one with prompts and checks")
    fingerprint = _taught(place)
    if fingerprint is None:
        raise InputError(f"there is no student in '{place}' yet", way_out="potstill train first")
    papers: dict[str, Paper] = {}
    who = {
        "teacher": (None, ""),
        "student": (place / "model", fingerprint[:16]),
        "base": _base(learner, place, recipe.seed),
    }
    for arm, (model, mark) in who.items():
        (place / "exam" / arm / "examples" / "verdicts.parquet").unlink(missing_ok=True)  # of older answers
        harvest(_sitting(recipe, exam, model, mark), folder=place / "exam" / arm, watch=watch)
        papers[arm] = marked(place / "exam" / arm, exam)
        done = len(papers[arm].passed)
        watch(Progress(stage="evaluate", what=arm, done=done, total=done, note=f"{papers[arm].rate:.1%} right"))
    scores = {"recipe": recipe.name, "student_fingerprint": fingerprint}
    scores |= compare_papers(papers, count=exam.resamples, seed=recipe.seed)
    write_atomic(place / "scores.json", json.dumps(scores, indent=1))
    return scores


def _learner(recipe: Recipe) -> Student:
    if recipe.student is None:
        raise InputError("the recipe has no 'student' section", way_out="add one: start, layers, licence")
    return recipe.student


def _taught(place: Path) -> str | None:
    """The fingerprint under which the student in the run folder was taught, or None."""
    done = place / "student.json"
    if not done.is_file() or not (place / "model" / "config.json").is_file():
        return None
    return json.loads(done.read_text(encoding="utf-8"))["fingerprint"]


def _sitting(recipe: Recipe, exam: Evaluate, model: Path | None, mark: str) -> Recipe:
    """The data recipe that has the exam's prompts answered once, greedily: by the teacher, or by a model folder, whose
    answers are kept under `mark`."""
    greedy = {"n": 1, "temperature": 0.0, "max_tokens": exam.max_tokens, "truncated": "keep", "longest": None}
    changes: dict[str, Any] = {
        "prompts": exam.prompts,
        "generate": recipe.generate.model_copy(update={**greedy, "budget": exam.budget}),
        "verify": None,
        "select": Select(),  # pyright: ignore[reportCallIssue]
        "rescue": None,
        "student": None,
        "evaluate": None,
    }
    if model is not None:
        local = Local(kind="local", template=None, slots=exam.batch_size)
        changes["teacher"] = Teacher(model=str(model), revision=mark, licence=_learner(recipe).licence, engine=local)
        changes["generate"] = Generate.model_validate(greedy)
    return recipe.model_copy(update=changes)


def _base(learner: Student, place: Path, seed: int) -> tuple[Path, str]:
    """The folder of the student before its first step, made where it is missing, and its mark. It has the layers that
    the student in the run folder has."""
    layers = json.loads((place / "student.json").read_text(encoding="utf-8")).get("layers")
    drawn = [seed] if learner.weights == "random" else []
    made_of = learner.model_dump_json(exclude={"lora"}) + json.dumps([layers, *drawn])
    mark = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    model = place / "controls" / f"base-{mark}" / "model"
    if not model.is_dir():
        save(untaught(learner, seed=seed, layers=layers), longest=1, to=model)
    return model, mark


def _model_card(recipe: Recipe, start: Untaught, answers: int, place: Path) -> str:
    learner = start.learner
    how = f"fine-tuned by LoRA of rank {learner.lora.rank}" if learner.lora else "fine-tuned"
    kept = weights_kept(recipe.train.best, Metrics(place / "metrics.jsonl").rows("student"))
    lines: Sequence[str] = (
        f"# {recipe.name}",
        "",
        f"Made of {learner.made_of(start.layers, start.of)}, {how} on {answers:,} answers that "
        f"{recipe.teacher.model} wrote and checks kept{kept}. Scores: `scores.json` of the run.",
        "",
        f"Licences: {recipe.licences}, {learner.licence} (student's start).",
    )
    return "\n".join(lines) + "\n"
