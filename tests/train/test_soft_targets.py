"""Soft targets at every token of whole answers: the definition's objective, from a teacher told what it was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from student_runs import equal, kept_answers, logged, losses_of, recipe_in, refusal, taught
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.cli import execute
from potstill.errors import InputError
from potstill.losses import Hidden, Name, Sampled, divergence
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of, fingerprint
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.methods import Divergence, LogitKd
from potstill.records import Example, Message, Progress
from potstill.store.packing import Form, HiddenForm, SampledForm
from potstill.store.signals import Identity, SignalsCache
from potstill.text.template import Template
from potstill.text.tokens import Codec, Ids
from potstill.train.batch import Row, Whole, collate
from potstill.train.methods import divergence_of, terms
from potstill.train.rows import example_rows
from potstill.train.scored import ScoringModel, require_same_tokens, scored_rows
from potstill.train.teaching import Kept, LiveTeacher, from_cache

TOLD: Ids = tuple(range(40, 60))


def rows(*, told: Ids, ends_alike: bool) -> list[Row]:
    draw = torch.Generator().manual_seed(3)

    def ids(count: int) -> Ids:
        return tuple(torch.randint(3, 300, (count,), generator=draw).tolist())

    found: list[Row] = []
    for asked, said in ((4, 5), (9, 2), (3, 11), (6, 5)):
        question = ids(asked)
        found.append(Row(prefix=question, target=(*ids(said), 2), teacher_prefix=(*told, *question, 7)))
    return [replace(row, ends_alike=ends_alike) for row in found]


@pytest.fixture
def teacher(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def by_definition(
    teacher: PreTrainedModel, student: PreTrainedModel, some: Sequence[Row], method: LogitKd
) -> torch.Tensor:
    """In float64, one conversation at a time."""
    loss, count = torch.zeros((), dtype=torch.float64), sum(len(row.target) for row in some)
    for row in some:

        def logits(model: PreTrainedModel, prefix: Ids, row: Row = row) -> torch.Tensor:
            made = model(torch.tensor([[*prefix, *row.target[:-1]]])).logits[0].double()
            return made[len(prefix) - 1 :]

        ours, theirs = logits(student, row.prefix), logits(teacher, row.teacher_prefix)
        ce_N = -ours.log_softmax(-1)[torch.arange(len(row.target)), list(row.target)]
        kd_N = divergence(
            divergence_of(method),
            student_logp_NV=(ours / method.temperature).log_softmax(-1),
            teacher_logp_NV=(theirs / method.temperature).log_softmax(-1),
        )
        loss = loss + method.temperature**2 * kd_N[: row.scored].sum() + method.alpha * ce_N.sum()
    return loss / count


@pytest.mark.parametrize("ends_alike", [True, False])
@pytest.mark.parametrize("told", [(), TOLD])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl"])
def test_loss_and_gradient_are_those_of_the_definition(
    teacher: PreTrainedModel, name: Name, told: Ids, ends_alike: bool
) -> None:
    method = LogitKd(kind="logit_kd", divergence=name, temperature=1.5, alpha=0.3)
    some, student = rows(told=told, ends_alike=ends_alike), first_layers(teacher, 2)
    teach = LiveTeacher(teacher, [row.teacher_prefix for row in some])
    batch = collate(some, (), whole=Whole.of(some), device=torch.device("cpu"))
    hidden_RD = hidden_rows(student, batch.documents, batch.at_R)
    loss, logged = terms(method, student, hidden_RD, batch, signal=teach(some))
    loss.backward()
    reference = first_layers(teacher, 2).double()
    wanted = by_definition(first_layers(teacher, 4).double(), reference, some, method)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    if ends_alike:
        assert method.temperature**2 * logged["kd"] + 0.3 * logged["ce"] == pytest.approx(wanted.item(), rel=1e-5)
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=2e-6, rtol=2e-4)


def test_the_recipe_names_every_divergence_of_the_loss_core() -> None:
    assert set(get_args(Divergence)) == set(get_args(Name))
    for name in get_args(Divergence):
        divergence_of(LogitKd(kind="logit_kd", divergence=name))


def recipe_with_a_scorer(folder: Path, model: Path, **train: object) -> Path:
    lessons = {
        "method": {"kind": "logit_kd", "divergence": "jsd", "beta": 0.3, "alpha": 0.1},
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.003,
        "scored_by": {"model": str(model), "licence": "mit"},
        **train,
    }
    recipe_in(folder, model, train=lessons)
    return folder / "recipe.yaml"


def test_a_recipe_with_soft_targets_trains_and_leaves_the_teacher_as_it_was(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)  # of other weights, so that there is something to learn
    before = fingerprint(teacher)
    soft = {"kind": "logit_kd", "alpha": 0.0}
    scorer = {"model": str(teacher), "licence": "mit"}
    path = recipe_with_a_scorer(tmp_path, tiny_model, scored_by=scorer, method=soft, epochs=9)
    assert execute(["run", str(path), "--run", str(tmp_path / "run")]) == 0
    assert fingerprint(teacher) == before
    observed = [row for row in logged(tmp_path / "run") if "kd" in row]
    assert len(observed) >= 2 and observed[-1]["kd"] < observed[0]["kd"]
    assert {"ce", "entropy", "agreement"} <= observed[0].keys()


def test_the_teacher_scores_what_it_was_told_when_it_wrote(tmp_path: Path, tiny_model: Path) -> None:
    recipe_with_a_scorer(tmp_path, tiny_model)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["teacher.instructions='be dull'"])
    codec = codec_of(tiny_model, None, name="student")
    talk = [Message(role="user", content="film"), Message(role="assistant", content="a nap")]
    assert recipe.scored_by is not None
    (row,) = scored_rows(recipe, ScoringModel.of(recipe.scored_by), [Example(tuple(talk))], codec)
    asked = codec.tokenizer.decode(list(row.teacher_prefix), skip_special_tokens=False)
    assert "be dull" in asked and row.ends_alike
    assert "be dull" not in codec.tokenizer.decode(list(row.prefix), skip_special_tokens=False)


def test_training_with_a_scorer_resumes_to_the_bit(tmp_path: Path, tiny_model: Path) -> None:
    recipe = load_recipe(recipe_with_a_scorer(tmp_path, tiny_model, checkpoint_seconds=1e-6))
    assert equal(taught(recipe, tmp_path / "a"), taught(recipe, tmp_path / "b", stops=[7]))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


SIGNALS: dict[str, tuple[dict[str, object], float]] = {
    "all tokens": ({"kind": "top_k", "k": 347}, 2e-2),  # in 12 bits each
    "int8": ({"kind": "hidden"}, 2e-2),
    "bf16": ({"kind": "hidden", "dtype": "bf16"}, 1e-2),
}


@pytest.mark.parametrize("name", list(SIGNALS))
def test_a_cache_teaches_what_the_live_teacher_does_and_the_teacher_is_not_loaded_again(
    name: str, tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, tolerance = SIGNALS[name]
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    soft = {"method": {"kind": "logit_kd", "alpha": 0.0}, "scored_by": {"model": str(teacher), "licence": "mit"}}

    def run(place: Path, **changed: object) -> list[float]:
        recipe = load_recipe(recipe_with_a_scorer(tmp_path, tiny_model, **soft, **changed))
        kept_answers(recipe, place)
        Run(recipe, place).train()
        return losses_of(place)

    live = run(tmp_path / "live")
    cached = run(tmp_path / "cached", signal=signal)
    assert cached == pytest.approx(live, rel=tolerance, abs=tolerance * max(live))
    monkeypatch.setattr("potstill.train.scored.LiveTeacher", None)  # whoever loads the teacher now fails
    assert run(tmp_path / "again", signal=signal, epochs=5)[:2] == pytest.approx(cached[:2], rel=0.2)


def test_a_teacher_in_int8_teaches_live_and_from_a_cache_of_its_own(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    scorer = {"model": str(teacher), "licence": "mit"}
    soft = {"method": {"kind": "logit_kd", "alpha": 0.0}, "scored_by": scorer}
    cached = {"signal": {"kind": "hidden"}, "signals_folder": str(tmp_path / "signals")}
    int8 = {"scored_by": {**scorer, "quantization": "int8"}}

    def run(name: str, **changed: object) -> list[float]:
        recipe = load_recipe(recipe_with_a_scorer(tmp_path, tiny_model, **{**soft, **changed}))
        kept_answers(recipe, tmp_path / name)
        Run(recipe, tmp_path / name).train()
        return losses_of(tmp_path / name)

    plain, live = run("plain"), run("live", **int8)
    assert live != plain and live == pytest.approx(plain, rel=2e-2, abs=2e-2 * max(plain))
    assert run("cached", **int8, **cached) == pytest.approx(live, rel=2e-2, abs=2e-2 * max(live))
    told = r"holds other signals: dtype is '(float32|bfloat16) with int8 weights' there, but '\1' here"
    with pytest.raises(InputError, match=told):
        run("mixed", **cached)


def test_a_teacher_without_linear_maps_is_refused_in_int8(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")  # for its tokenizer
    vocabulary = AutoModelForCausalLM.from_pretrained(teacher).config.vocab_size
    config = AutoConfig.for_model("gpt2", vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(teacher)
    scorer = {"model": str(teacher), "licence": "mit"}
    kept_answers(load_recipe(recipe_with_a_scorer(tmp_path, tiny_model, scored_by=scorer)), tmp_path / "run")
    said = refusal("train", tmp_path / "recipe.yaml", ["train.scored_by.quantization=int8"], capsys)
    assert "cannot be read in int8: 'attn.c_attn.weight' of its layers (gpt2) is no nn.Linear; leave" in said


def test_draws_teach_too_and_a_stopped_cache_goes_on(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.train.teaching._LOGIT_ROWS", 8)
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    path = recipe_with_a_scorer(
        tmp_path,
        tiny_model,
        method={"kind": "logit_kd", "alpha": 0.0, "temperature": 2.0},
        scored_by={"model": str(teacher), "licence": "mit"},
        signal={"kind": "sampled", "draws": 8},
        signals_folder=str(tmp_path / "signals"),
    )
    recipe = load_recipe(path)
    kept_answers(recipe, tmp_path / "run")
    counted: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.what == "teacher's signals":
            counted.append(progress.done)
            if len(counted) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(recipe, tmp_path / "run", watch).train()
    Run(recipe, tmp_path / "run", watch).train()
    assert counted == sorted(set(counted)) and len(counted) > 6  # what was computed is not computed again
    first = losses_of(tmp_path / "run")
    other = load_recipe(path, ["train.method.temperature=1.0"])
    with pytest.raises(InputError, match=r"holds other signals: temperature is 2\.0 there, but 1\.0 here"):
        Run(other, tmp_path / "run").train()
    assert len(first) > 5


FORMS: dict[str, Form] = {"int8": HiddenForm("int8"), "bf16": HiddenForm("bf16"), "draws": SampledForm(16)}


@pytest.mark.parametrize("name", list(FORMS))
def test_a_cache_killed_between_its_shards_holds_the_bits_of_an_unbroken_one(
    name: str, tmp_path: Path, teacher: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 24 rows, shards of 40: a shard that ended in the middle of a batch would part it."""
    monkeypatch.setattr("potstill.train.teaching._LOGIT_ROWS", 24)
    monkeypatch.setattr("potstill.train.teaching.SignalsCache.open", partial(SignalsCache.open, shard_tokens=40))
    some = [
        replace(row, prefix=(*row.prefix, 9 + i), teacher_prefix=(*row.teacher_prefix, 9 + i))
        for i in range(5)
        for row in rows(told=(), ends_alike=True)
    ]
    identity = Identity(teacher="t", revision="", tokenizer="", template="", vocabulary=300, dtype="")

    def said(folder: Path, stop: int | None = None) -> tuple[torch.Tensor, ...]:
        """What the cache says of all rows; None of it where the process is killed after so many batches."""
        done = list[int]()

        def watch(progress: Progress) -> None:
            done.append(progress.done)
            if len(done) == stop:
                raise KeyboardInterrupt

        live = LiveTeacher(teacher.requires_grad_(False), [row.teacher_prefix for row in some])
        kept = Kept(folder=folder, identity=identity, form=FORMS[name], load=lambda: live)
        found = from_cache(kept, some, watch)(some)
        if isinstance(found, Sampled):
            return found.ids_NK, found.counts_NK
        assert isinstance(found, Hidden)
        return (found.hidden_ND,)

    whole = said(tmp_path / "whole")
    for stop in (3, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SignalsCache, "__exit__", lambda cache, *_: cache._lock.release())  # kill -9 writes nothing
            said(tmp_path / "broken", stop)
    assert 1 <= len(list((tmp_path / "broken").glob("shard-*"))) < len(list((tmp_path / "whole").glob("shard-*")))
    resumed = said(tmp_path / "broken")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole, resumed, strict=True))


def test_weights_of_the_selection_weigh(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="student")
    talk = [Message(role="user", content="film"), Message(role="assistant", content="a nap")]
    rows = example_rows([Example(tuple(talk)), Example(tuple(talk), 3.0)], codec, reasoning=False)
    batch = collate(rows, (), whole=Whole.of(rows), device=torch.device("cpu"))
    n = len(rows[0].target)
    assert batch.weight_N.sum().item() == pytest.approx(1.0)
    assert batch.weight_N[n:].sum().item() == pytest.approx(0.75)


def test_other_tokens_are_refused(tiny_model: Path) -> None:
    from tokenizers import Tokenizer

    ours = codec_of(tiny_model, None, name="student")
    other = Tokenizer.from_str(ours.tokenizer.to_str())
    other.add_tokens(["<new>"])
    template = Template(ours.template.source, name="student")
    require_same_tokens(Codec(other, template), ours)  # the teacher may know more
    with pytest.raises(InputError, match=r"'<new>' is \d+ for the student and nothing for the teacher"):
        require_same_tokens(ours, Codec(other, template))


MISTAKES = {
    "nobody scores": (["train.scored_by=null"], "the teacher does not run in this process"),
    "unread scores": (["train.method={kind: sft}"], "'scored_by' gives soft targets"),
    "beta of another": (["train.method={kind: logit_kd, beta: 0.3}"], "'beta' belongs to the divergence 'jsd'"),
    "draws of another": (
        ["train.method={kind: logit_kd, divergence: jsd}", "train.signal={kind: sampled}"],
        "draws estimate 'forward_kl' alone",
    ),
    "a live folder": (["train.signals_folder=x"], "'signals_folder' keeps signals"),
    "a served one in int8": (
        [
            "train.scored_by={model: m, licence: mit, quantization: int8, tokenizer: t, engine: {kind: server, url: 'http://h/v1'}}"
        ],
        "'quantization' is of a model in this process: a served one is quantised where it is served",
    ),
    "unknown bits": (["train.scored_by.quantization=int4"], "'int8'"),
    "an unknown licence": (["train.scored_by.licence=whatever"], "train.scored_by.licence"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_with_soft_targets_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = MISTAKES[name]
    path = recipe_with_a_scorer(tmp_path, tiny_model)
    assert said in refusal("train", path, overrides, capsys, code=7 if "licence" in name else 2)
