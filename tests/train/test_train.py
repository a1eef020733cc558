"""The loop learns, sees every example once an epoch, and resumes to the bit."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from potstill.errors import GuardStopped
from potstill.models.forward import head_logits, hidden_rows
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.models.student import first_layers
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.train import TrainSettings
from potstill.records import Progress, Watch, unwatched
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.text.tokens import Ids
from potstill.train.batch import Row, Whole, collate, passes, steps_of_epoch
from potstill.train.data import Data
from potstill.train.language import ChoiceObjective
from potstill.train.loop import Training, fit, schedule
from potstill.train.methods import terms
from potstill.train.state import TrainState
from potstill.train.traces import Traces

ONE_TOKEN: tuple[Ids, ...] = ((7,), (9,))
SEVERAL: tuple[Ids, ...] = ((7, 8), (9,), (7, 5, 6))
KD = LogitKd(kind="logit_kd", temperature=2.0, alpha=0.5)


def rows(choices: tuple[Ids, ...], n: int = 24, seed: int = 0) -> list[Row]:
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    found: list[Row] = []
    for _ in range(n):
        prefix = tuple(number(3, 300) for _ in range(number(2, 12)))
        logp = torch.log_softmax(torch.randn(len(choices), generator=draw), 0)
        best = int(logp.argmax())
        found.append(Row(prefix=prefix, target=(*choices[best], 2), teacher_logp=tuple(logp.tolist())))
    return found


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return first_layers(load(locate(str(tiny_model)), dtype=torch.float32).model, 2)


def training(
    folder: Path,
    choices: tuple[Ids, ...] = ONE_TOKEN,
    *,
    method: Sft | LogitKd = KD,
    fingerprint: str = "f",
    watch: Watch = unwatched,
    **changed: Any,
) -> Training[PreTrainedModel, Row]:
    settings = TrainSettings(
        method=KD,
        epochs=3,
        batch_size=5,
        learning_rate=3e-3,
        validations=1,
        checkpoint_seconds=1e-9,
        average=0.5,
    )
    traces = Traces(
        arm="student",
        fingerprint=fingerprint,
        checkpoints=Checkpoints(folder / "checkpoints"),
        metrics=Metrics(folder / "metrics.jsonl"),
        watch=watch,
    )
    given: dict[str, Any] = {
        "data": Data(rows(choices)),
        "objective": ChoiceObjective(method=method, choices=choices),
        "settings": settings,
        "seed": 0,
        "validate": lambda _: {},
        "traces": traces,
    }
    return Training(**{**given, **changed})


def naive_loss(
    model: PreTrainedModel, some: list[Row], choices: tuple[Ids, ...], method: Sft | LogitKd
) -> torch.Tensor:
    """The same objective in float64, one sequence at a time, from the definition."""
    ce, targets, kd = torch.zeros((), dtype=torch.float64), 0, torch.zeros((), dtype=torch.float64)
    for row in some:

        def logp(answer: Ids, row: Row = row) -> torch.Tensor:
            out = model(torch.tensor([[*row.prefix, *answer]])).logits[0].log_softmax(-1)
            return torch.stack([out[len(row.prefix) - 1 + i, token] for i, token in enumerate(answer)])

        ce, targets = ce - logp(row.target).sum(), targets + len(row.target)
        if isinstance(method, LogitKd):
            student = torch.stack([logp(choice).sum() for choice in choices])
            p = torch.softmax(torch.tensor(row.teacher_logp, dtype=torch.float64) / method.temperature, 0)
            q = torch.log_softmax(student / method.temperature, 0)
            kd = kd + method.temperature**2 * (p * (p.log() - q)).sum()
    mean_ce = ce / targets
    return mean_ce if isinstance(method, Sft) else kd / len(some) + method.alpha * mean_ce


@pytest.mark.parametrize("choices", [ONE_TOKEN, SEVERAL])
@pytest.mark.parametrize("method", [Sft(kind="sft"), KD])
def test_loss_and_gradient_of_a_batch_equal_the_definition(
    model: PreTrainedModel, choices: tuple[Ids, ...], method: Sft | LogitKd
) -> None:
    some = rows(choices, n=7, seed=3)
    batch = collate(some, choices, whole=Whole.of(some), device=torch.device("cpu"))
    hidden = hidden_rows(model, batch.documents, batch.at_R)
    loss, _ = terms(method, model, hidden, batch)
    loss.backward()
    reference = first_layers(model, 2).double()
    expected = naive_loss(reference, some, choices, method)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=2e-6, rtol=2e-4)


@given(
    n=st.integers(1, 200),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
)
def test_an_epoch_sees_every_example_once_in_an_order_of_its_own(n: int, size: int, seed: int, epoch: int) -> None:
    batches = steps_of_epoch(n, batch_size=size, seed=seed, epoch=epoch)
    assert sorted(i for b in batches for i in b) == list(range(n))
    assert all(len(b) <= size for b in batches)
    assert batches == steps_of_epoch(n, batch_size=size, seed=seed, epoch=epoch)
    if n > 20:
        assert batches != steps_of_epoch(n, batch_size=size, seed=seed, epoch=epoch + 1)


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=60), room=st.integers(1, 100))
def test_passes_hold_every_example_once_and_as_few_as_half_the_room_each(lengths: list[int], room: int) -> None:
    some = [Row(prefix=(3,) * (n - 1), target=(4, 2)) for n in lengths]
    found = passes(some, room)
    assert sorted(row.tokens for part in found for row in part) == sorted(row.tokens for row in some)
    sizes = [sum(row.tokens for row in part) for part in found]
    assert all(size <= room or len(part) == 1 for size, part in zip(sizes, found, strict=True))
    assert sum(size <= room / 2 for size in sizes) <= 1


@pytest.mark.parametrize("choices", [(), SEVERAL])
def test_a_step_is_the_same_in_one_pass_and_in_many(tiny_model: Path, tmp_path: Path, choices: tuple[Ids, ...]) -> None:
    """One denominator: 1 x 32, 4 x 8 and 32 x 1 examples a pass give the same gradients."""
    method = KD if choices else Sft(kind="sft")
    some = [replace(row, weight=1 + i % 3) for i, row in enumerate(rows(choices or ONE_TOKEN, 32))]
    found: list[list[torch.Tensor]] = []
    for size in (32, 8, 1):
        model = first_layers(load(locate(str(tiny_model)), dtype=torch.float32).model, 2)
        for start in range(0, 32, size):
            batch = collate(some[start : start + size], choices, whole=Whole.of(some), device=torch.device("cpu"))
            loss, _ = terms(method, model, hidden_rows(model, batch.documents, batch.at_R), batch)
            loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_the_schedule_warms_up_and_ends_at_a_tenth() -> None:
    rates = [schedule(step, 100, TrainSettings(method=KD, warmup=0.1)) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_the_other_schedule_is_flat_and_then_falls_to_nothing() -> None:
    rates = [schedule(step, 100, TrainSettings(method=KD, warmup=0.1, schedule="wsd")) for step in range(100)]
    assert rates[9] < 1.0 and set(rates[10:80]) == {1.0}
    assert rates[80:] == sorted(rates[80:], reverse=True) and rates[-1] == pytest.approx(0.05)


def test_training_brings_the_student_to_the_teacher(model: PreTrainedModel, tmp_path: Path) -> None:
    settings = TrainSettings(method=KD, epochs=40, batch_size=8, learning_rate=3e-3, validations=1)
    work = training(tmp_path, settings=settings)
    fitted = fit(model, work)
    logged = Metrics(tmp_path / "metrics.jsonl").rows("student")
    assert fitted.steps == 120 == len(logged)
    assert logged[-1]["kd"] < 0.1 * logged[0]["kd"]
    assert logged[-1]["tokens"] == fitted.tokens == 40 * sum(row.tokens for row in work.data.rows)


class Killed(BaseException):
    """Stands in for the process being gone: nothing in the loop may catch it."""


@pytest.mark.parametrize("stops", [[3], [1, 2, 9], [14]])
@pytest.mark.parametrize("method", [Sft(kind="sft"), KD])
def test_a_killed_training_resumes_to_the_bit(
    tiny_model: Path, tmp_path: Path, stops: list[int], method: Sft | LogitKd
) -> None:
    def fresh() -> PreTrainedModel:
        return first_layers(load(locate(str(tiny_model)), dtype=torch.float32).model, 2)

    def kill_at(step: int) -> Callable[[Progress], None]:
        def watch(p: Progress) -> None:
            if p.done == step:
                raise Killed

        return watch

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = fresh()
    fitted = fit(whole, training(unbroken, method=method))
    for stop in stops:
        with pytest.raises(Killed):
            fit(fresh(), training(broken, method=method, watch=kill_at(stop)))
    resumed = fresh()
    again = fit(resumed, training(broken, method=method))
    assert (again.steps, again.tokens) == (fitted.steps, fitted.tokens)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (unbroken / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def test_a_checkpoint_of_another_recipe_is_not_resumed(model: PreTrainedModel, tmp_path: Path) -> None:
    def stop(p: Progress) -> None:
        if p.done == 7:
            raise Killed

    with pytest.raises(Killed):
        fit(first_layers(model, 2), training(tmp_path, watch=stop))
    fit(model, training(tmp_path, fingerprint="other"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 16))


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(model: PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")  # pyright: ignore
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(GuardStopped, match="step 1: the loss is nan"):
        fit(model, training(tmp_path))
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def test_a_step_with_tied_embeddings_is_the_step_of_plain_autograd(model: PreTrainedModel) -> None:
    """What looking up adds to a tied weight's gradient is added by hand: the same to the last digits."""
    embeddings = model.get_input_embeddings()
    assert embeddings is not None and embeddings.weight is model.get_output_embeddings().weight
    settings = training(Path()).settings
    some = rows(ONE_TOKEN, 6)
    plain, batch = copy.deepcopy(model), collate(some, (), whole=Whole.of(some), device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    state = TrainState(model, settings)
    for _ in range(2):
        for one in (plain, model):
            hidden_RD = hidden_rows(one, batch.documents, batch.at_R)
            torch.nn.functional.cross_entropy(head_logits(one, hidden_RD), batch.target_N).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        state.update(rate=1e-3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
