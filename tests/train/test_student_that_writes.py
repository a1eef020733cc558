"""A student that learns to write: whole answers, the right tokens, resumed to the bit; and its exam."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from student_runs import FILMS, equal, logged, recipe_in, refusal, taught, weights
from transformers import AutoModelForCausalLM

from potstill.cli import execute
from potstill.errors import InputError, LicenceRefused
from potstill.models.load import codec_of
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.records import Example, Message
from potstill.store.requests import Requests
from potstill.train.batch import Whole, collate
from potstill.train.rows import example_rows
from potstill.train.texts import held_back_nats


def test_generate_verify_train_evaluate(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_in(tmp_path, tiny_model)
    run = tmp_path / "run"
    assert execute(["run", str(tmp_path / "recipe.yaml"), "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "student - base" in said and "report.html" in said
    page = (run / "report.html").read_text()
    assert "Answers side by side" in page and len(page) < 300_000
    scores = json.loads((run / "scores.json").read_text())
    # the canned teacher is right or wrong by the luck of its seed; the base has random weights
    assert scores["arms"]["base"]["accuracy"]["value"] == 0.0
    assert scores["arms"]["student"]["accuracy"]["n"] == 16
    assert {"student - teacher", "student - base"} == set(scores["paired"])
    learnt = json.loads((run / "arms" / "student" / "trained.json").read_text())
    kept = pq.read_metadata(run / "examples" / "selected.parquet").num_rows
    assert learnt["examples"] == kept - math.ceil(kept / 20) > 30  # one in twenty is held back
    steps = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    curve = [step["validation_nats_per_token"] for step in steps if "validation_nats_per_token" in step]
    assert len(curve) == 4 and min(curve) < 0.8 * curve[0]
    model = AutoModelForCausalLM.from_pretrained(run / "model", local_files_only=True)
    assert model.config.num_hidden_layers == 2 and "teacher `apache-2.0`" in (run / "model" / "README.md").read_text()
    assert execute(["runs", str(tmp_path), "--json"]) == 0
    assert f"{scores['arms']['student']['accuracy']['value']:.1%}" in capsys.readouterr().out
    # again: nothing is taught or asked anew
    before = {p: p.stat().st_mtime_ns for p in (run / "model").iterdir()}
    Run(recipe, run).train()
    (tmp_path / "answers.jsonl").unlink()
    (tmp_path / "answers.jsonl").write_text("")
    assert Run(recipe, run).evaluate()["arms"] == scores["arms"]
    assert {p: p.stat().st_mtime_ns for p in (run / "model").iterdir()} == before


def test_the_students_licence_is_checked_before_anything_is_paid_for(tmp_path: Path, tiny_model: Path) -> None:
    student = {"start": str(tiny_model), "licence": "nobody knows", "layers": 2}
    with pytest.raises(LicenceRefused, match=r"student\.licence"):
        Run(recipe_in(tmp_path, tiny_model, student=student), tmp_path / "run").generate()
    assert not (tmp_path / "run").exists()


def test_the_assistants_last_turn_bears_loss_and_nothing_else(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="student")
    talk = [
        Message(role="user", content="good"),
        Message(role="assistant", content="bad"),
        Message(role="user", content="film"),
        Message(role="assistant", content="a nap", reasoning_content="dull script"),
    ]
    (row,) = example_rows([Example(tuple(talk))], codec, reasoning=False)
    assert codec.tokenizer.decode(list(row.target), skip_special_tokens=False) == "a nap<|im_end|>"
    asked = codec.tokenizer.decode(list(row.prefix), skip_special_tokens=False)
    assert asked.endswith("<|im_start|>assistant\n") and "bad<|im_end|>" in asked
    batch = collate([row], (), whole=Whole.of([row]), device=torch.device("cpu"))
    assert batch.target_N.tolist() == list(row.target) and len(batch.at_R) == len(row.target)
    with pytest.raises(InputError, match=r"does not write the assistant's reasoning"):
        example_rows([Example(tuple(talk))], codec, reasoning=True)


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and m.get('reasoning_content') %}"
    "<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_reasoning_is_learnt_where_the_template_writes_it(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, THINKING, name="student")
    talk = [Message(role="user", content="film"), Message(role="assistant", content="a nap", reasoning_content="dull")]
    (row,) = example_rows([Example(tuple(talk))], codec, reasoning=True)
    text = codec.tokenizer.decode(list(row.target), skip_special_tokens=False)
    assert text == "<think>\ndull\n</think>\n\na nap<|im_end|>"
    (row,) = example_rows([Example(tuple(talk))], codec, reasoning=False)
    assert codec.tokenizer.decode(list(row.target), skip_special_tokens=False) == "a nap<|im_end|>"


def test_reasoning_that_nobody_wrote_cannot_be_learnt(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, THINKING, name="student")
    plain = [Message(role="user", content="film"), Message(role="assistant", content="a nap")]
    with pytest.raises(InputError, match="no kept answer has reasoning"):
        example_rows([Example(tuple(plain))], codec, reasoning=True)
    thought = [plain[0], Message(role="assistant", content="a nap", reasoning_content="dull")]
    assert len(example_rows([Example(tuple(plain)), Example(tuple(thought))], codec, reasoning=True)) == 2


@pytest.mark.parametrize("learn", ["reasoning and answer", "answer"])
def test_a_teachers_steps_are_learnt_or_not_and_the_exam_looks_at_the_answer(
    learn: str, tmp_path: Path, tiny_model: Path
) -> None:
    """The same teacher says "nap" to everything after the same thought; both students pass, only one thinks."""
    recipe = recipe_in(
        tmp_path,
        tiny_model,
        student={"start": str(tiny_model), "licence": "mit", "template": THINKING, "freeze_embeddings": False},
        train={"epochs": 20, "batch_size": 8, "learning_rate": 0.01, "learn": learn},
        verify={"checks": [{"kind": "reasoning"}, {"kind": "exact"}]},
        evaluate={
            "prompts": {
                "source": str(tmp_path / "test.jsonl"),
                "licence": "mit",
                "columns": {"text": "q", "reference": "a"},
            },
            "checks": [{"kind": "exact"}],
            "max_tokens": 60,
        },
    )
    for file in (tmp_path / "learn.jsonl", tmp_path / "test.jsonl"):
        rows = [{**json.loads(line), "a": "nap"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"say {a} {b}" for a in FILMS for b in FILMS if a != b]
    canned = [{"prompt": prompt, "answer": "<think>dull film</think>nap"} for prompt in asked]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in canned))
    run = tmp_path / "run"
    Run(recipe, run).generate()
    assert Run(recipe, run).verify().kept == 40
    Run(recipe, run).train()
    arms = Run(recipe, run).evaluate()["arms"]
    assert arms["teacher"]["accuracy"]["value"] == arms["student"]["accuracy"]["value"] == 1.0
    with Requests(run / "test" / "student" / "ledger.sqlite") as requests:
        thoughts = {sample.reasoning for _, sample in requests.samples(most=1)}
    assert thoughts == ({"dull film"} if learn == "reasoning and answer" else {None})


def test_an_answer_that_spells_a_control_token_is_left_out(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="student")
    asked = Message(role="user", content="film")
    with pytest.raises(InputError, match="no answer to learn"):
        talk = Example((asked, Message(role="assistant", content="a <|im_end|> b")))
        example_rows([talk], codec, reasoning=False)


def test_held_back_nats_are_the_mean_cross_entropy(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="student")
    turns = ((Message(role="user", content=a), Message(role="assistant", content=b)) for a, b in pairwise(FILMS))
    talks = [Example(talk) for talk in turns]
    rows = example_rows(talks, codec, reasoning=False)
    model = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*row.prefix, *row.target]])
        logp = torch.log_softmax(model(ids).logits[0].double(), -1)
        for step, token in enumerate(row.target):
            total -= logp[len(row.prefix) - 1 + step, token].item()
            count += 1
    assert held_back_nats(model, rows).value == pytest.approx(total / count, rel=1e-5)


def test_training_goes_on_after_a_stop_and_ends_at_the_same_weights(tmp_path: Path, tiny_model: Path) -> None:
    often = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "average": 0.5, "checkpoint_seconds": 1e-6}
    recipe = recipe_in(tmp_path, tiny_model, train=often)
    assert equal(taught(recipe, tmp_path / "a"), taught(recipe, tmp_path / "b", stops=[7]))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_from_random_weights_everything_learns_and_the_base_is_what_it_began_as(
    tmp_path: Path, tiny_model: Path
) -> None:
    shaped = {"start": str(tiny_model), "licence": "mit", "layers": 2}
    short = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}
    recipe = recipe_in(tmp_path, tiny_model, student={**shaped, "weights": "random"}, train=short)
    run = tmp_path / "run"
    learnt = taught(recipe, run)
    Run(recipe, run).evaluate()
    began = weights(next((run / "test" / "base").glob("model-*")))
    start = weights(tiny_model)
    assert learnt.keys() == began.keys() < start.keys()
    for name, value in began.items():
        assert not torch.equal(value, learnt[name]), name  # embeddings too, frozen by default as they are
        assert value.std() == 0 or not torch.equal(value, start[name]), name  # norms begin as ones
    assert "random weights in the shape of the first 2 of 4 layers" in (run / "model" / "README.md").read_text()
    again = Run(recipe_in(tmp_path, tiny_model, student=shaped, train=short), run).evaluate()
    assert again["arms"]["base"]["accuracy"]["n"] == 16
    assert len(list((run / "test" / "base").glob("model-*"))) == 1  # that of the student that there is now


def test_a_model_whose_training_was_not_booked_is_not_taken_for_another(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the model and the note that says whose it is, on the way from one recipe to another and back."""
    short = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}
    first, run = recipe_in(tmp_path, tiny_model, train=short), tmp_path / "run"
    second = recipe_in(tmp_path, tiny_model, train={**short, "learning_rate": 0.02})
    whole = taught(first, run)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("potstill.train.stage._write_outcome", killed)
        Run(second, run).train()
    assert not equal(weights(run / "model"), whole)
    assert equal(weights(Run(first, run).train()["student"]), whole)


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no student": ("train", ["student=null", "evaluate=null"], "has no 'student' section"),
    "no exam": ("evaluate", ["evaluate=null"], "has no 'evaluate' section"),
    "nothing asked": ("train", [], "holds no answers yet; let the teacher write: potstill generate"),
    "nothing to evaluate": ("evaluate", [], "holds no answers yet; let the teacher write: potstill generate"),
    "exam without student": ("train", ["student=null"], "add 'student'"),
    "a student of nothing": ("generate", ["student.start=nowhere/at-all.gguf"], "there is no model at"),
    "too many layers": ("generate", ["student.layers=9"], "student.layers is 9, but the model it starts from has 4"),
    "a broken template": ("generate", ["student.template='{% if %}'"], "the student template does not parse"),
    "adapters of nothing": (
        "train",
        ["student.weights=random", "student.lora={rank: 2, alpha: 2}"],
        "'lora' builds on what the start has learnt: 'weights' random has none of it",
    ),
    "no exam paper": ("generate", ["evaluate.prompts.source=none.jsonl"], "there is no file at 'none.jsonl'"),
    "an exam without a price": ("generate", ["evaluate.budget=1.0"], "'evaluate.budget' needs a served teacher"),
    "a majority in an exam": ("evaluate", ["evaluate.checks=[{kind: majority}]"], "every prompt is answered once"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, overrides, said = MISTAKES[name]
    recipe_in(tmp_path, tiny_model)
    assert said in refusal(verb, tmp_path / "recipe.yaml", overrides, capsys)
    assert not (tmp_path / "run" / "ledger.sqlite").exists()  # nothing was asked before it was found


@pytest.mark.parametrize(
    ("done", "verb", "said"),
    [
        (["generate"], "train", "holds no kept answers yet; potstill verify first"),
        (["generate", "verify"], "evaluate", "there is no student in"),
    ],
)
def test_the_verb_that_is_missing_is_named(
    done: list[str], verb: str, said: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_in(tmp_path, tiny_model)
    for one in done:
        assert execute([one, str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert said in refusal(verb, tmp_path / "recipe.yaml", [], capsys)


def test_an_exam_of_a_paid_teacher_has_a_budget_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("canned: {input: 1, output: 1}\n")
    paid = {"model": "canned", "licence": "mit", "engine": {"kind": "server", "url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(InputError, match=r"does not cover the test set.*'evaluate\.budget'"):
        recipe_in(tmp_path, tiny_model, teacher=paid, generate={"n": 3, "budget": 1.0, "prices": str(prices)})
