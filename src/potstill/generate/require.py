"""What can be known to be wrong with any section of a recipe before the first is paid for. Needs no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from potstill.engines.choose import form_of, sampler_for
from potstill.errors import InputError
from potstill.generate.collect import price_of
from potstill.generate.judges import require_judges
from potstill.generate.rescue import try_of
from potstill.generate.room import Reader, reader_of_student
from potstill.licences import Policy, gate
from potstill.models.locate import check_layers, facts, hub_snapshot, locate
from potstill.models.templates import template_of
from potstill.prompts.stream import stream_prompts
from potstill.recipe import GenerationRequest, Recipe, arms_of
from potstill.recipe.student import Encoder, Student
from potstill.recipe.teacher import Batches, Canned, Gguf, Local, Server
from potstill.store.metrics import require_sinks
from potstill.text.template import Template
from potstill.verify.programs import require_checks, require_package


def require_sections(recipe: Recipe) -> dict[str, Policy]:
    """Returns what the licences allow, by their keys in the recipe; raises a PotstillError."""
    policies = gate(recipe)
    require_checks(recipe)
    require_judges(recipe)
    for arm in arms_of(recipe):
        require_student(arm.student)
        require_sinks(arm.recipe.train)
    tested = recipe.evaluate.prompts if recipe.evaluate else None
    if tested is not None:
        next(stream_prompts(tested, Counter(), task=recipe.task))
    return policies


def require_teacher(request: GenerationRequest) -> None:
    """All that `require_form` sees, and whether a server's key is there, before anything is asked."""
    require_form(request)
    if not isinstance(request.teacher.engine, Local):
        sampler_for(request)


def require_form(request: GenerationRequest) -> None:
    """Its price, files and form, and whether the choices can be told apart. Raises a PotstillError. Loads no weights,
    and no client of servers."""
    price_of(request)
    match request.teacher.engine:
        case Local(template=template):
            facts(locate(request.teacher.model))
            if template is not None:
                Template(template, name="teacher")
            if reader := Reader.of("teacher.model", request.teacher.model, request.teacher.revision, template):
                reader.require_template()
        case Server() | Gguf():
            form_of(request)
        case Canned() | Batches():
            pass


def require_rescue(recipe: Recipe) -> None:
    """The same of whoever is asked again."""
    for number in range(1, len(recipe.rescue.tries) + 1 if recipe.rescue else 1):
        require_teacher(try_of(recipe, number, Path()))


def require_student(student: Student | Encoder) -> None:
    """What the headers of its start, its template and the installed packages tell. Raises a PotstillError."""
    if isinstance(student, Encoder):
        if (named := student.start or student.tokenizer) is not None:
            locate(named)
        return
    start = facts(located := locate(student.start))
    listed = student.layers if isinstance(student.layers, tuple) else None
    check_layers(start, listed or student.taken or 1, key="student.layers")
    if start is not None and student.freeze_layers >= start.layers:
        raise InputError(
            f"student.freeze_layers is {student.freeze_layers}, but the model it starts from has {start.layers} layers",
            way_out="freeze fewer layers",
        )
    folder = hub_snapshot(student.start, student.revision) if located.form == "hub" else located.path
    if folder is not None and folder.is_dir():
        template_of(folder, student.template, name="student").require_end()
    elif student.template is not None:
        Template(student.template, name="student").require_end()
    if reader := reader_of_student(student):
        reader.require_template()
    if student.lora is not None:
        require_package("peft", "lora", what="'student.lora'")
