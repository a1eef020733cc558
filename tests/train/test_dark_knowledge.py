"""The short form of docs/results/dark_knowledge.md: three seeds of Hinton's experiment on digits."""

import dark_knowledge
import pytest
from dark_knowledge import Seed


@pytest.fixture(scope="module")
def found() -> list[Seed]:
    return [dark_knowledge.one_seed(seed) for seed in range(3)]


def test_distilled_beats_alone_by_its_paired_interval(found: list[Seed]) -> None:
    _, low, _ = dark_knowledge.mean_and_interval([s.distilled - s.alone for s in found])
    assert low > 0


def test_a_digit_never_seen_is_recognised_after_a_correction_without_labels(found: list[Seed]) -> None:
    assert min(s.omitted_recall_corrected for s in found) > 0.5
    assert all(s.omitted_recall_corrected > s.omitted_recall for s in found)
    assert all(s.omitted_accuracy_corrected > s.omitted_accuracy for s in found)


def test_no_student_touches_its_teacher(found: list[Seed]) -> None:
    assert all(s.teacher_before == s.teacher_after for s in found)
