"""Any classifier teaches any module: the objective from its definition, transfer rows, resuming, the teacher kept."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, ModernBertConfig, PreTrainedModel

from potstill.errors import GuardStopped, InputError
from potstill.models.load import fingerprint
from potstill.recipe.train import Best
from potstill.records import Score
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.train.classifiers import (
    UNLABELLED,
    Classification,
    Distillation,
    classification,
    distil_classifier,
    drawn_from,
    logits_of,
    train_classifier,
    unpadded,
)
from potstill.train.loop import Fitted
from potstill.train.traces import Traces

CPU = torch.device("cpu")
SHORT = Distillation(epochs=3, batch_size=8, learning_rate=1e-2)


def network(seed: str, *, dropout: float = 0.0) -> nn.Sequential:
    with drawn_from(seed, CPU):
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def data(n: int = 30, *, labelled: int = 10) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(n, 5, generator=draw), torch.randint(0, 3, (n,), generator=draw)
    labels[labelled:] = UNLABELLED
    return inputs, labels


def hashed(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@given(seed=st.integers(0, 2**20), temperature=st.floats(0.5, 8.0), alpha=st.floats(0.0, 2.0))
def test_the_objective_is_hintons(seed: int, temperature: float, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(6, 4, generator=draw), torch.randn(6, 4, generator=draw)
    labels = torch.tensor([0, 3, UNLABELLED, 1, UNLABELLED, UNLABELLED])
    settings = Distillation(temperature=temperature, alpha=alpha)
    whole = Classification(settings=settings, inputs={}, teacher_logits_NC=teacher, label_N=labels, label_share=0.5)
    loss, parts = whole.loss(student, range(6), of=6)
    p = torch.softmax(teacher.double() / temperature, -1)
    q = torch.softmax(student.double() / temperature, -1)
    kd = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    ce = F.cross_entropy(student[[0, 1, 3]].double(), labels[[0, 1, 3]])
    assert loss.item() == pytest.approx((kd + alpha * ce).item(), rel=1e-4, abs=1e-5)
    assert parts["kd"] == pytest.approx(kd.item(), rel=1e-4, abs=1e-5)


@given(size=st.integers(1, 30))
def test_the_mean_over_steps_is_the_loss_of_all_rows_wherever_the_labels_fall(size: int) -> None:
    inputs, labels = data()
    teacher, student = network("teacher")(inputs).detach(), network("student")(inputs).detach()
    whole = classification(network("student"), teacher, inputs, labels, SHORT)

    def loss_of(rows: range) -> float:
        return whole.loss(student[rows.start : rows.stop], rows, of=len(rows))[0].item()

    parts = [range(i, min(i + size, 30)) for i in range(0, 30, size)]
    assert sum(loss_of(rows) * len(rows) for rows in parts) / 30 == pytest.approx(loss_of(range(30)), rel=1e-5)


def test_a_step_in_several_passes_is_the_step_in_one() -> None:
    inputs, labels = data()
    made = []
    for pass_tokens in (8192, 3):
        student, settings = network("student"), SHORT.model_copy(update={"pass_tokens": pass_tokens})
        distil_classifier(student, network("teacher"), inputs, labels=labels, settings=settings)
        made.append(weights(student))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-4)
    assert not torch.equal(made[0], made[1])


def test_a_classifier_teaches_a_classifier_and_keeps_its_weights_and_mode() -> None:
    inputs, labels = data(120, labelled=0)
    teacher = network("teacher", dropout=0.5).train()
    student, before = network("student"), hashed(teacher)
    started = (logits_of(student, inputs) - logits_of(teacher, inputs)).abs().mean()
    distil_classifier(student, teacher, inputs, labels=labels, settings=Distillation(epochs=60, learning_rate=2e-2))
    assert hashed(teacher) == before and teacher.training
    agree = (logits_of(student, inputs).argmax(-1) == logits_of(teacher, inputs).argmax(-1)).float().mean()
    assert agree > 0.9, (agree, started)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_forward_kl"])
def test_another_divergence_and_another_teacher_give_another_student(name: Any) -> None:
    inputs, _ = data()
    made = []
    for divergence, teacher in (("forward_kl", "one"), (name, "one"), (name, "two")):
        student = network("student")
        settings = Distillation(epochs=2, batch_size=8, divergence=divergence)
        distil_classifier(student, network(teacher), inputs, settings=settings)
        made.append(weights(student))
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


def test_without_a_teacher_rows_without_a_label_teach_nothing() -> None:
    inputs, labels = data()
    one, two = network("student"), network("student")
    distil_classifier(one, None, inputs, labels=labels, settings=SHORT)
    distil_classifier(two, None, inputs[:10], labels=labels[:10], settings=SHORT)
    assert torch.equal(weights(one), weights(two))


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone() -> None:
    inputs, labels = data()
    made = []
    for seed in (0, 0, 1):
        student = network("student", dropout=0.3)
        torch.manual_seed(len(made))
        state = torch.get_rng_state()
        settings = Distillation(epochs=2, batch_size=8, seed=seed)
        distil_classifier(student, network("teacher"), inputs, labels=labels, settings=settings)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(weights(student))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def train(student: nn.Module, folder: Path, *, teacher: str = "teacher", stop_at: int | None = None) -> Fitted:
    """In a run folder, half validated."""

    def watch(progress: Any) -> None:
        if progress.done == stop_at:
            raise KeyboardInterrupt

    traces = Traces(
        arm="encoder",
        fingerprint="",
        checkpoints=Checkpoints(folder / "checkpoints"),
        metrics=Metrics(folder / "metrics.jsonl"),
        watch=watch,
    )
    settings = SHORT.model_copy(update={"checkpoint_seconds": 1e-9, "validations": 2})
    objective = classification(student, network(teacher), *data(), settings)
    validate = lambda _: {"accuracy": Score(value=0.5, n=2)}  # noqa: E731
    return train_classifier(student, objective, validate=validate, traces=traces)


def with_running_means(seed: str) -> nn.Sequential:
    with drawn_from(seed, CPU):
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, again = with_running_means("student"), with_running_means("student")
    train(whole, tmp_path / "a")
    for stop in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            train(with_running_means("student"), tmp_path / "b", stop_at=stop)
    taught = train(again, tmp_path / "b")
    assert hashed(again) == hashed(whole) != hashed(with_running_means("student"))
    assert Metrics(tmp_path / "a" / "metrics.jsonl").rows() == Metrics(tmp_path / "b" / "metrics.jsonl").rows()
    assert taught.steps == 12
    steps = [row["step"] for row in Metrics(tmp_path / "b" / "metrics.jsonl").rows() if "validation_accuracy" in row]
    assert steps == [6, 12]


def test_a_checkpoint_of_another_teacher_is_not_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network("student"), tmp_path, teacher="other", stop_at=9)
    one, two = network("student"), network("student")
    train(one, tmp_path)
    train(two, tmp_path / "other")
    assert torch.equal(weights(one), weights(two))


def test_nothing_is_written_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, labels = data()
    distil_classifier(network("student"), None, inputs, labels=labels, settings=SHORT)
    assert not list(tmp_path.iterdir())
    best = SHORT.model_copy(update={"best": Best(metric="accuracy")})
    with pytest.raises(InputError, match="'best' goes back to a checkpoint"):
        distil_classifier(network("student"), None, inputs, labels=labels, settings=best)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move() -> None:
    class Root(nn.Module):  # finite at 0, its slope is not
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sqrt()

    student = nn.Sequential(nn.Linear(5, 3), Root())
    with torch.no_grad():
        student[0].weight.zero_()
        student[0].bias.zero_()
    before = weights(student)
    with pytest.raises(GuardStopped, match="step 1: the gradient's norm is nan"):
        distil_classifier(student, network("teacher"), data()[0], settings=SHORT)
    assert torch.equal(weights(student), before)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": torch.full((30,), 7)}, "that of row 0 is 7"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "4 labels for 30 rows"),
        ({"teacher": torch.zeros(30, 4)}, r"shape \(30, 4\), the student's \(30, 3\)"),
        ({"teacher": None}, "neither a teacher nor a label"),
        ({"inputs": {"a": torch.zeros(3, 5), "b": torch.zeros(2, 5)}}, "not all of the same"),
        ({"student": nn.Sequential(nn.Linear(5, 3), nn.Flatten(0))}, "returns a tensor of shape"),
    ],
)
def test_bad_input_is_one_sentence(changed: dict[str, Any], said: str) -> None:
    given_ = {
        "student": network("student"),
        "teacher": network("teacher"),
        "inputs": data()[0],
        "labels": None,
        **changed,
    }
    with pytest.raises(InputError, match=said):
        distil_classifier(given_["student"], given_["teacher"], given_["inputs"], labels=given_["labels"])


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"alpha": -1.0}, {"epochs": 0}])
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Distillation(**wrong)


def test_columns_that_nobody_attends_to_are_cut() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    cut = unpadded({"input_ids": torch.arange(8).view(2, 4), "attention_mask": mask, "other": torch.zeros(2, 3)})
    assert {name: value.shape[1] for name, value in cut.items()} == {"input_ids": 2, "attention_mask": 2, "other": 3}


def encoder(seed: str, layers: int) -> PreTrainedModel:
    config = ModernBertConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        classifier_pooling="mean",
        classifier_dropout=0.1,
    )
    with drawn_from(seed, CPU):
        return AutoModelForSequenceClassification.from_config(config).eval()


def test_an_encoder_folder_teaches_a_smaller_encoder(tmp_path: Path) -> None:
    encoder("teacher", 3).save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    with torch.no_grad():
        teacher.classifier.weight.mul_(40)  # random weights are sure of nothing
    teacher.save_pretrained(tmp_path / "teacher")
    before, bytes_before = hashed(teacher), fingerprint(tmp_path / "teacher")
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 12, (64,), generator=draw)
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    inputs = {"input_ids": torch.randint(1, 60, (64, 12), generator=draw) * mask, "attention_mask": mask}
    student, untrained = encoder("student", 1), encoder("student", 1)
    settings = Distillation(epochs=25, batch_size=16, learning_rate=5e-3, temperature=2.0)
    distil_classifier(student, teacher, inputs, settings=settings)

    def agreement(model: nn.Module) -> float:
        return (logits_of(model, inputs).argmax(-1) == logits_of(teacher, inputs).argmax(-1)).float().mean().item()

    assert agreement(student) > max(agreement(untrained), 0.8)
    assert hashed(teacher) == before and fingerprint(tmp_path / "teacher") == bytes_before


def test_layers_that_are_computed_again_learn_the_same() -> None:
    inputs = {"input_ids": torch.randint(1, 60, (16, 6), generator=torch.Generator().manual_seed(0))}
    settings = Distillation(epochs=2, batch_size=8, gradient_checkpointing=True)

    def trained(settings: Distillation) -> tuple[Tensor, int]:
        student, calls = encoder("student", 2), list[int]()
        student.model.layers[0].attn.register_forward_hook(lambda *_: calls.append(1))
        distil_classifier(student, torch.eye(3)[torch.arange(16) % 3], inputs, settings=settings)
        return weights(student), len(calls)

    plain, once = trained(settings.model_copy(update={"gradient_checkpointing": False}))
    computed_again, twice = trained(settings)
    torch.testing.assert_close(plain, computed_again)
    assert twice - 1 == 2 * (once - 1)  # one forward counts the classes
    with pytest.raises(InputError, match="Sequential cannot compute its layers again"):
        distil_classifier(network("student"), network("teacher"), data()[0], settings=settings)


def test_logits_do_not_depend_on_how_the_rows_are_batched() -> None:
    model = encoder("teacher", 2)
    mask = (torch.arange(9)[None] < torch.tensor([2, 9, 5, 3])[:, None]).long()
    inputs = {"input_ids": torch.arange(36).view(4, 9) % 50 * mask, "attention_mask": mask}
    torch.testing.assert_close(logits_of(model, inputs, batch_size=1), logits_of(model, inputs), atol=1e-5, rtol=1e-5)


def test_labels_may_be_a_list_or_an_array() -> None:
    inputs, labels = data(labelled=30)
    made = []
    for given_labels in (labels, labels.tolist(), labels.numpy(), labels.double()):
        student = network("student")
        distil_classifier(student, None, inputs, labels=given_labels, settings=SHORT)
        made.append(weights(student))
    assert all(torch.equal(made[0], other) for other in made[1:])


LABELS: dict[str, tuple[Any, str]] = {
    "one number per class": (F.one_hot(data(labelled=30)[1], 3), r"shape \(30, 3\): .*give labels\.argmax\(-1\)"),
    "a column": (data(labelled=30)[1][:, None], r"they have the shape \(30, 1\) for 30 rows"),
    "between two classes": ([0] * 29 + [1.6], r"that of row 29 is 1\.6; give a class from 0 to 2"),
    "names": (["cat"] * 30, "labels are no numbers"),
    "too few": ([0, 1], "there are 2 labels for 30 rows"),
}


@pytest.mark.parametrize("name", list(LABELS))
def test_labels_that_are_no_class_numbers_are_refused(name: str) -> None:
    given_labels, said = LABELS[name]
    with pytest.raises(InputError, match=said):
        distil_classifier(network("student"), None, data()[0], labels=given_labels, settings=SHORT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teachers_logits_that_are_no_numbers_are_the_teachers_fault(value: float) -> None:
    inputs, labels = data()
    logits_NC = network("teacher")(inputs).detach()
    logits_NC[7, 1] = value
    with pytest.raises(InputError, match=r"the teacher's logits of row 7 are \[.*see what the teacher makes of"):
        distil_classifier(network("student"), logits_NC, inputs, labels=labels, settings=SHORT)
    broken = network("teacher")
    broken[-1].bias.data[0] = value  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="the teacher's logits of row 0 are"):
        distil_classifier(network("student"), broken, inputs, labels=labels, settings=SHORT)


def test_a_class_that_the_teacher_rules_out_needs_forward_kl() -> None:
    inputs, _ = data()
    logits_NC = network("teacher")(inputs).detach()
    logits_NC[7, 1] = -torch.inf
    distil_classifier(network("student"), logits_NC, inputs, settings=SHORT)
    reverse = SHORT.model_copy(update={"divergence": "reverse_kl"})
    with pytest.raises(InputError, match=r"row 7 are \[.*-inf.*nothing to learn with reverse_kl"):
        distil_classifier(network("student"), logits_NC, inputs, settings=reverse)


def test_inputs_that_are_no_numbers_are_named() -> None:
    inputs, labels = data(labelled=30)
    for strange, said in ((inputs.numpy(), "the inputs are a ndarray"), ({"x": [1, 2]}, "the inputs 'x' are a list")):
        with pytest.raises(InputError, match=said):
            distil_classifier(network("student"), None, strange, labels=labels, settings=SHORT)  # pyright: ignore
    inputs[3, 2] = torch.nan
    with pytest.raises(InputError, match="the inputs hold NaN, first in row 3"):
        distil_classifier(network("student"), None, inputs, labels=labels, settings=SHORT)


def test_batch_norm_with_a_row_left_over_is_refused_before_the_first_step() -> None:
    inputs, labels = data(25, labelled=25)
    with drawn_from("student", CPU):
        student = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = hashed(student)
    with pytest.raises(InputError, match=r"batch norm of Sequential cannot learn from a row that is alone.*batch_size"):
        distil_classifier(student, None, inputs, labels=labels, settings=SHORT)
    assert hashed(student) == before
    distil_classifier(student, None, inputs, labels=labels, settings=SHORT.model_copy(update={"batch_size": 9}))
    assert hashed(student) != before
    alone = SHORT.model_copy(update={"batch_size": 9, "pass_tokens": 8})
    with pytest.raises(InputError, match="more pass_tokens"):
        distil_classifier(student, None, inputs, labels=labels, settings=alone)


def test_half_an_epoch_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"epochs\n +Input should be a valid integer .*input_value=0\.5"):
        Distillation(epochs=0.5)  # pyright: ignore[reportArgumentType]
