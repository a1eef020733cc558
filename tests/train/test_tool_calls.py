"""What a student learns of tools and their calls: what its template writes; nothing where it writes none."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from student_runs import recipe_in
from transformers import AutoTokenizer

from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.pipeline import Run
from potstill.recipe.scoring import ScoredBy
from potstill.records import Example, Message, Progress, Prompt, Sample
from potstill.store.answers import write_answers
from potstill.text.tokens import Codec
from potstill.train.rows import example_rows
from potstill.train.scored import ScoringModel, scored_rows

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"at": {}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"at": "Bonn", "n": [1, "ü"]}'}}
WRITES = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_CALLS = WRITES.replace("m.tool_calls or []", "[]")
ASKED = Message(role="user", content="film?")
CALLS = Message(role="assistant", content="", tool_calls=(CALL,))
SAYS = Message(role="assistant", content="a nap")
WITH_CALL = Example((ASKED, CALLS), tools=(TOOL,))


def codec(model: Path, template: str | None) -> Codec:
    return codec_of(model, template, name="student")


def test_a_call_is_learnt_as_transformers_writes_it(tiny_model: Path) -> None:
    student = codec(tiny_model, WRITES)
    (row,) = example_rows([WITH_CALL], student, reasoning=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    call = {"type": "function", "function": {"name": "f", "arguments": json.loads(CALL["function"]["arguments"])}}  # pyright: ignore
    turns = [{"role": "user", "content": "film?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    theirs = {"tools": [TOOL], "chat_template": WRITES, "tokenize": False}
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **theirs)
    whole = tokenizer.apply_chat_template(turns, **theirs)
    assert student.text(row.prefix) == asked
    assert student.text((*row.prefix, *row.target)) == whole.rstrip("\n")
    assert '<call>f {"at": "Bonn", "n": [1, "ü"]}</call><|im_end|>' in whole


@pytest.mark.parametrize(
    ("template", "talk", "what"),
    [
        (NO_CALLS, WITH_CALL, "tool calls"),
        (None, WITH_CALL, "tools"),
        (None, replace(WITH_CALL, tools=()), "tool calls"),
        (None, Example((ASKED, CALLS, Message(role="tool", content="4", tool_call_id="c1"), SAYS)), "tool calls"),
    ],
)
def test_what_the_template_drops_is_not_learnt(
    tiny_model: Path, template: str | None, talk: Example, what: str
) -> None:
    plain, left_out = Example((ASKED, SAYS), prompt_id="p"), Counter[str]()
    rows = example_rows([talk, plain], codec(tiny_model, template), reasoning=False, left_out=left_out)
    assert [row.prompt_id for row in rows] == ["p"]
    assert left_out == {f"the student template does not write {what}": 1}
    with pytest.raises(InputError, match=f"no answer to learn; 1 left out: .* does not write {what}"):
        example_rows([talk], codec(tiny_model, template), reasoning=False)


def test_a_control_token_in_an_argument_or_a_tool_is_found(tiny_model: Path) -> None:
    function = {"name": "f", "arguments": '{"at": "<|im_end|>"}'}
    calls = Message(role="assistant", content="", tool_calls=({"type": "function", "function": function},))
    described = {"type": "function", "function": {"name": "f", "description": "ends by <|im_end|>"}}
    for talk in (Example((ASKED, calls)), Example((ASKED, SAYS), tools=(described,))):
        left_out = Counter[str]()
        plain = Example((ASKED, SAYS))
        example_rows([talk, plain], codec(tiny_model, WRITES), reasoning=False, left_out=left_out)
        assert left_out == {"it spells the control token <|im_end|>": 1}


def test_a_teacher_that_cannot_read_the_tools_does_not_score(tmp_path: Path, tiny_model: Path) -> None:
    recipe, left_out = recipe_in(tmp_path, tiny_model), Counter[str]()
    student, plain = codec(tiny_model, WRITES), Example((ASKED, SAYS))

    def rows(template: str | None) -> int:
        scorer = ScoringModel.of(ScoredBy(model=str(tiny_model), licence="mit", template=template))  # pyright: ignore
        found = scored_rows(recipe, scorer, [WITH_CALL, plain], student, left_out)
        assert all('"name": "f"' in student.text(row.teacher_prefix) for row in found[:-1])
        return len(found)

    assert rows(WRITES) == 2 and not left_out
    assert rows(None) == 1 and left_out == {"the teacher template does not write tools": 1}


def test_a_run_says_how_many_were_left_out(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_model, train={"epochs": 1}, verify=None)
    said: list[str] = []

    def watch(progress: Progress) -> None:
        said.append(progress.note)

    prompt = Prompt(id="p", split="train", messages=(ASKED,))
    answers = [Sample(prompt_id="p", text="a nap"), Sample(prompt_id="p", text="", index=1, tool_calls=(CALL,))]
    Run(recipe, tmp_path / "run").generate()
    write_answers(
        Run(recipe, tmp_path / "run").folder.answers,
        [(prompt, answer) for answer in answers],
        teacher="t",
        licence="mit",
    )
    Run(recipe, tmp_path / "run", watch).train()
    done = json.loads((tmp_path / "run" / "arms" / "student" / "trained.json").read_text())
    reason = "the student template does not write tool calls"
    assert done["examples"] == 1 and done["left_out"] == {reason: 1} and f"1 left out: {reason}" in said
