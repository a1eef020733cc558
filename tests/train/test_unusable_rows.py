"""One row that cannot be learnt as it is stops nothing: it is left out, counted and shown. The habits of common
templates are learnt."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from student_runs import FILMS, recipe_in

from potstill.cli import execute
from potstill.engines.reply import Spoken, split_inline
from potstill.engines.sampler import Ask, Failure
from potstill.engines.writer import LocalSampler
from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.pipeline import Run
from potstill.recipe.generate import Generate
from potstill.recipe.scoring import ScoredBy
from potstill.recipe.teacher import Local
from potstill.records import Example, Message, Progress, Prompt, Sample
from potstill.text.template import day, today
from potstill.train.choices import choice_rows
from potstill.train.learnable import student_nats
from potstill.train.rows import example_rows
from potstill.train.scored import ScoringModel, scored_rows

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TRIMS = CHATML.replace("m['content']", "m['content'] | trim") + ASKS
BLANK = CHATML.replace("<|im_end|>", " <|im_end|>") + ASKS
OPENS = CHATML + ASKS.replace("assistant\n", "assistant\n<think>\n")
CUTS = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]") + ASKS
ALTERNATES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TRIMS
)
TWICE = CHATML + "{% if not add_generation_prompt %}<|im_end|>{% endif %}" + ASKS
DEAF = CHATML.replace("in messages", "in messages if m.role != 'system'") + ASKS
BREAKS = "{{ messages[0].content + none if messages[0].role == 'system' else '' }}" + CHATML + ASKS
ASKED, SYSTEM = Message(role="user", content="film"), Message(role="system", content="Be brief.")
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def says(text: str, **more: object) -> Message:
    return Message(role="assistant", content=text, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("template", "answer", "learnt"),
    [
        (TRIMS, says(" a nap\n"), "a nap<|im_end|>"),
        (TRIMS, says(" \n"), "<|im_end|>"),
        (CHATML + ASKS, says(" a nap\n"), " a nap\n<|im_end|>"),
        (BLANK, says("a nap"), "a nap <|im_end|>"),
        (BLANK, says("a nap "), "a nap  <|im_end|>"),
        (OPENS, says("a nap"), "\n</think>\n\na nap<|im_end|>"),
        (OPENS, says("a nap", reasoning_content="dull"), "dull\n</think>\n\na nap<|im_end|>"),
        (CUTS, says("a nap"), "a nap<|im_end|>"),
        (TWICE, says("a nap"), "a nap<|im_end|>"),
        (TWICE, says(""), "<|im_end|>"),
    ],
)
def test_habits_of_templates_are_learnt(tiny_model: Path, template: str, answer: Message, learnt: str) -> None:
    codec = codec_of(tiny_model, template, name="student")
    (row,) = example_rows([Example((ASKED, answer))], codec, reasoning=answer.reasoning_content is not None)
    assert codec.text(row.target) == learnt
    asked = codec.template.render([ASKED], add_generation_prompt=True)
    assert codec.text(row.prefix) == asked and asked.endswith(("assistant\n", "<think>\n"))


@pytest.mark.parametrize(
    ("template", "talk", "why"),
    [
        (CUTS, (ASKED, says("first </think> second")), "the student template does not write the answer as it is"),
        (CHATML + ASKS, (ASKED, says("a <|im_end|> b")), "it spells the control token <|im_end|>"),
        (
            ALTERNATES,
            (SYSTEM, ASKED, says("b")),
            "the student template refuses these messages: System role not supported",
        ),
        (DEAF, (SYSTEM, ASKED, says("b")), "the student template does not write what the role 'system' says"),
        (BREAKS, (SYSTEM, ASKED, says("b")), "the student template refuses these messages: can only concatenate str"),
        (CHATML + ASKS, (ASKED, says("", tool_calls=(CALL,))), "the student template does not write tool calls"),
    ],
)
def test_what_cannot_be_learnt_is_counted_with_the_reason(
    tiny_model: Path, template: str, talk: tuple[Message, ...], why: str
) -> None:
    codec, left_out, good = codec_of(tiny_model, template, name="student"), Counter[str](), (ASKED, says("a nap"))
    talks = [Example(talk, prompt_id="bad"), Example(good, prompt_id="good"), Example(talk)]
    rows = example_rows(talks, codec, reasoning=False, left_out=left_out)
    assert [row.prompt_id for row in rows] == ["good"]
    ((reason, count),) = left_out.items()
    assert count == 2 and reason.startswith(why)
    with pytest.raises(InputError, match="there is no answer to learn; 1 left out: "):
        example_rows([Example(talk)], codec, reasoning=False)


def test_a_template_that_ends_no_turn_is_refused_and_not_counted(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, CHATML.replace("<|im_end|>", "") + ASKS, name="student")
    with pytest.raises(InputError, match="does not close the assistant's turn"):
        example_rows([Example((ASKED, says("a nap")))], codec, reasoning=False)


def test_who_scores_and_who_ranks_leave_them_out_too(tmp_path: Path, tiny_model: Path) -> None:
    recipe, left_out = recipe_in(tmp_path, tiny_model), Counter[str]()
    scorer = ScoringModel.of(ScoredBy(model=str(tiny_model), licence="mit", template=ALTERNATES))  # pyright: ignore
    talks = [Example((SYSTEM, ASKED, says("a nap"))), Example((ASKED, says("a nap")))]
    assert len(scored_rows(recipe, scorer, talks, codec_of(tiny_model, None, name="student"), left_out)) == 1
    assert left_out == {"the teacher template refuses these messages: System role not supported": 1}
    with pytest.raises(InputError, match="no answer to learn; 1 left out: the teacher template refuses"):
        scored_rows(recipe, scorer, talks[:1], codec_of(tiny_model, None, name="student"))
    student = {"start": str(tiny_model), "licence": "mit", "layers": 2, "template": ALTERNATES}
    nats = student_nats(recipe_in(tmp_path, tiny_model, student=student))
    prompts = [Prompt(id="p", split="train", messages=asked) for asked in ((SYSTEM, ASKED), (ASKED,))]
    first, second = nats([(prompt, Sample(prompt_id="p", text="a nap")) for prompt in prompts])
    assert first is None and second is not None


def test_prompts_of_choices_are_counted_by_their_reasons(tiny_model: Path) -> None:
    spelt = Message(role="user", content="a <|im_end|> b")
    codec, left_out = codec_of(tiny_model, ALTERNATES, name="student"), Counter[str]()
    talks = [(ASKED, says("good")), (spelt, says("bad")), (SYSTEM, ASKED, says("bad"))]
    examples = [Example(talk, choice_logprobs=(-0.7, -0.7)) for talk in talks]
    assert len(choice_rows(examples, codec, ("good", "bad"), left_out)) == 1
    assert sorted(left_out.values()) == [1, 1] and "it spells the control token <|im_end|>" in left_out
    with pytest.raises(InputError, match="no answer to learn; 1 left out: it spells the control token"):
        choice_rows(examples[1:2], codec, ("good", "bad"))
    (row,) = choice_rows(examples[:1], codec_of(tiny_model, BLANK, name="student"), ("good", "bad"))
    assert codec.text(row.target) == "good <|im_end|>"


def test_a_prompt_that_the_teachers_template_refuses_is_refused_alone(tiny_model: Path) -> None:
    sampler = LocalSampler(str(tiny_model), None, Generate(n=1), Local(kind="local", template=ALTERNATES))  # pyright: ignore
    asked = Ask(messages=({"role": "system", "content": "s"},), count=1, max_tokens=2, seed=0, identity="")
    with pytest.raises(Failure, match="System role not supported") as said:
        asyncio.run(sampler.ask(asked))
    assert said.value.kind == "refused"


def test_a_run_says_of_each_arm_what_it_left_out_and_why(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(
        tmp_path,
        tiny_model,
        train={"epochs": 1, "batch_size": 40},
        verify={"checks": [{"kind": "length"}]},
        generate={"n": 1},
        arms={"again": {"train": {"learning_rate": 1e-3}}},
    )
    asked = [f"say {a} {b}" for a in FILMS for b in FILMS if a != b]
    lines = [{"prompt": prompt, "answer": "<|im_end|>" if prompt == "say good bad" else "nap\n"} for prompt in asked]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[Progress] = []
    run = Run(recipe, tmp_path / "run", said.append)
    run.generate()
    run.verify()
    run.train()
    reason = "it spells the control token <|im_end|>"
    told = {(p.what, p.done, p.total, p.note) for p in said if "left out" in p.note}
    assert told == {(f"examples of {arm}", 39, 40, f"1 left out: {reason}") for arm in ("student", "again")}
    for arm in ("student", "again"):
        assert json.loads((run.folder.arm(arm) / "trained.json").read_text())["left_out"] == {reason: 1}


def test_a_run_goes_on_on_the_day_on_which_it_began(tmp_path: Path, tiny_model: Path) -> None:
    """A template that writes today's date: the student's is that of the run, whenever each stage runs."""
    dates = "<|im_start|>{{ strftime_now('%d %B %Y') }}<|im_end|>" + CHATML + ASKS
    student = {"start": str(tiny_model), "licence": "mit", "layers": 1, "template": dates}
    once = {"epochs": 1, "batch_size": 40}
    run = Run(recipe_in(tmp_path, tiny_model, student=student, train=once), tmp_path / "run")
    run.generate()
    assert run.folder.day == today()
    (run.folder.path / "day").write_text("2031-02-03")
    run.verify()
    run.train()
    assert run.folder.day == date(2031, 2, 3)
    saved = codec_of(run.folder.model, None, name="student").prefix([ASKED])
    with day(date(2031, 2, 3)):
        assert saved == codec_of(tiny_model, dates, name="student").prefix([ASKED])
    assert "03 February 2031" in codec_of(tiny_model, None, name="student").text(saved)


def test_what_closes_an_opened_thought_is_read_as_reasoning(tiny_model: Path) -> None:
    """By every exam: the answer that was learnt is the answer that is examined."""
    codec = codec_of(tiny_model, OPENS, name="student")
    (row,) = example_rows([Example((ASKED, says("a nap")))], codec, reasoning=False)
    assert split_inline(Spoken(codec)(row.prefix, row.target[:-1])) == ("", "a nap", True)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (CHATML.replace("<|im_end|>", "") + ASKS, "does not close the assistant's turn"),
        ("{% if add_generation_prompt %}A:{% endif %}{{ messages[-1].content }}", "does not round-trip"),
        (None, "carries no chat template"),
    ],
)
def test_check_refuses_a_template_that_teaches_nothing(
    tmp_path: Path, tiny_model: Path, template: str | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    recipe_in(tmp_path, folder)
    assert execute(["check", str(tmp_path / "recipe.yaml")]) == 2
    assert why in capsys.readouterr().err
