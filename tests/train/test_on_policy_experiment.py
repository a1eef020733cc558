"""The short form of docs/results/on_policy_experiment.md: five seeds, one pass over the prompts, three arms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affordable import AFFORDABLE
from on_policy_experiment import OFF, ON, SFT, START, Arm, Point, Seen, Trained, arms_of, greedy, one_seed, ratio
from on_policy_tasks import COLUMNS, Task, columns_task

from potstill.models.precision import precision

SHORT = replace(COLUMNS, exam=150, epochs=1, validations=1)
SEEDS = range(5)


@pytest.fixture(scope="module")
def task() -> Task:
    with precision(AFFORDABLE):
        return columns_task(SHORT)


@pytest.fixture(scope="module")
def arms(task: Task) -> dict[str, Arm]:
    with precision(AFFORDABLE):
        return arms_of([one_seed(task, SHORT, seed, (SFT, OFF, ON)) for seed in SEEDS])


def test_the_teacher_can_do_what_its_student_half_can(task: Task, arms: dict[str, Arm]) -> None:
    assert 2e6 < task.teacher.num_parameters() < 5e6
    assert greedy(task.teacher, task).mean() >= 0.9
    assert 0.25 < ratio(*arms[START].right).value < 0.85


def test_on_its_own_text_the_student_comes_nearer_to_the_teacher(arms: dict[str, Arm]) -> None:
    change = ratio(*arms[ON].nats, less=arms[START].nats)
    assert change.high < 0
    assert ratio(*arms[ON].nats).value < 0.8 * ratio(*arms[START].nats).value


def test_and_it_does_the_task_no_worse(arms: dict[str, Arm]) -> None:
    assert ratio(*arms[ON].right, less=arms[START].right).low > -0.02
    assert arms[ON].ended > 0.95


def test_equal_time_reads_the_last_validation_within_it() -> None:
    nothing = Trained(Seen(*(np.zeros(3) for _ in range(4))))
    curve = [Point(1.0, np.array([1.0, 0, 0])), Point(2.0, np.array([1.0, 1, 0]))]
    slow, fast = Trained(nothing.seen, curve), Trained(nothing.seen, [Point(1.5, np.ones(3))])
    arms = arms_of([{START: nothing, SFT: fast, ON: slow}])
    assert [arms[arm].right_in_time[0].sum() for arm in (START, SFT, ON)] == [0, 3, 1]
    assert slow.right_within(0.5, nothing).sum() == 0


def test_an_interval_draws_seeds_and_prompts_again() -> None:
    """Two seeds that disagree on every prompt: the interval is as wide as their difference, however many prompts."""
    right_SN = np.stack([np.zeros(400), np.ones(400)])
    found = ratio(right_SN, np.ones_like(right_SN))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    against_itself = ratio(right_SN, np.ones_like(right_SN), less=(right_SN, np.ones_like(right_SN)))
    assert (against_itself.value, against_itself.low, against_itself.high) == (0.0, 0.0, 0.0)
