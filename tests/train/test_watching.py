"""What a step says of itself: operations as torch counts them, scores of a validation by their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_soft_targets import by_definition, rows
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.console.live import in_words, readings
from potstill.models.documents import Documents
from potstill.models.forward import head_logits, hidden_rows
from potstill.models.load import codec_of, compute_dtype
from potstill.models.student import first_layers, freeze
from potstill.recipe.methods import Divergence, LogitKd
from potstill.records import Example, Message, Sample, Score
from potstill.train.advantages import verdicts_by
from potstill.train.rows import example_rows
from potstill.train.teaching import LiveTeacher
from potstill.train.validation import HeldOutPrompts, distance
from potstill.train.watching import Gauge, operations, peak


@pytest.fixture
def teacher(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.mark.parametrize("frozen", [0, 2])
def test_operations_are_those_that_torch_counts(teacher: PreTrainedModel, frozen: int) -> None:
    student = first_layers(teacher, 3)
    freeze(student, embeddings=frozen > 0, layers=frozen)
    documents = Documents.of([(5, 6, 7, 8, 9, 10, 11)] * 4, torch.device("cpu"))
    bears_loss = torch.tensor([3, 5, 12])
    hidden_rows(student, documents, bears_loss)  # the self-test of its architecture is not counted
    counter = FlopCounterMode(display=False)
    with counter:
        head_logits(student, hidden_rows(student, documents, bears_loss)).sum().backward()
    made = sum(
        n for name, n in counter.get_flop_counts()["Global"].items() if "mm" in str(name) and "bmm" not in str(name)
    )
    read, late = operations(student)
    assert made == pytest.approx(28 * read + 3 * late, rel=0.02)


def test_a_gauge_reads_speed_memory_and_time_left(teacher: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 104.0])
    peak("cpu")
    monkeypatch.setattr("potstill.train.watching.time.perf_counter", lambda: next(clock))
    gauge, some = Gauge(teacher, 1000), rows(told=(), ends_alike=True)
    gauge.read(1400, some, {"loss": 2.0}, steps_left=9)
    found = gauge.read(1600, some, {"loss": 1.0, "ce": 0.5, "validation_kd": 0.1}, steps_left=8)
    assert (found["tokens_per_second"], found["seconds_left"]) == (150.0, 16.0)
    assert (found["loss"], found["validation_kd"]) == (1.0, 0.1)
    read, late = operations(teacher)
    done = 600 * read + 2 * sum(len(row.target) for row in some) * late
    assert found["share_of_peak"] == pytest.approx(done / 4 / peak("cpu"))
    assert found["peak_memory_bytes"] > 50e6


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
@pytest.mark.parametrize("ends_alike", [True, False])
def test_the_distance_on_held_back_text_is_the_definitions(
    teacher: PreTrainedModel, divergence: Divergence, ends_alike: bool
) -> None:
    method = LogitKd(kind="logit_kd", divergence=divergence, temperature=2.0, alpha=0.0)
    some, student = rows(told=(), ends_alike=ends_alike), first_layers(teacher, 2)
    expected = by_definition(teacher, student, some, method).item() / method.temperature**2
    found = distance(student, some * 3, method, LiveTeacher(teacher, [row.teacher_prefix for row in some]))
    assert found.value == pytest.approx(expected, rel=2e-5 if compute_dtype() == torch.float32 else 3e-2)
    assert found.n == 3 * sum(row.scored for row in some)


def test_a_quiz_asks_every_question_once_and_greedily(tiny_model: Path, teacher: PreTrainedModel) -> None:
    codec = codec_of(tiny_model, None, name="student")
    asked = [Message(role="user", content=word) for word in ("good film", "dull")]
    talks = [
        Example((one, Message(role="assistant", content=said)), prompt_id=one.content)
        for one in asked
        for said in ("a", "nap")
    ]
    heard: list[Sample] = []

    def reward(answers: Sequence[Sample]) -> list[float | None]:
        heard.extend(answers)
        return [1.0, None]

    held = example_rows(talks, codec, reasoning=False)
    quiz = HeldOutPrompts.of(held, verdicts_by(reward, codec), end_of_turn=2, max_tokens=6)
    assert quiz(teacher) == Score(value=0.5, n=2) and [s.prompt_id for s in heard] == ["good film", "dull"]
    for sample, one in zip(heard, asked, strict=True):
        ids = torch.tensor([codec.prefix([one])])
        written = teacher.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()  # pyright: ignore
        assert sample.text == codec.tokenizer.decode(written, skip_special_tokens=True), sample.prompt_id
        assert sample.cut_off == (2 not in written)


def test_readings_are_a_row_on_a_terminal_and_words_in_a_log() -> None:
    facts = {"loss": 1.2345, "kd": 0.5, "agreement": 0.912, "tokens_per_second": 3456.0, "share_of_peak": 0.38}
    facts |= {"peak_memory_bytes": 3 * 2**30, "seconds_left": 200.0, "validation_nats_per_token": 1.5}
    console = Console(width=120, force_terminal=True)
    with console.capture() as capture:
        console.print(readings(facts))
    said = capture.get()
    for word in ("loss", "1.234", "KL", "0.500", "agreement", "91%", "3,456", "38.0%", "3.0 GiB", "3 min", "val. nats"):
        assert word in said
    assert "entropy" not in said
    assert in_words(facts) == "3,456 tokens/s, 38.0% of peak, 3.0 GiB memory, 3 min left"
