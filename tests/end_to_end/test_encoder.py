"""A recipe with an encoder: an arm like the others, in scores and report, and a folder that anybody can load."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import potstill
from potstill.errors import InputError, LicenceRefused
from potstill.models.load import fingerprint
from potstill.plan import plan
from potstill.recipe import Recipe
from potstill.recipe.file import as_yaml
from potstill.records import Progress
from potstill.store.requests import Requests
from potstill.store.run import RunFolder

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Made:
    folder: Path
    recipe: Recipe
    teacher: Path
    teacher_before: str


def small(folder: Path, teacher: Path, *more: str, encoder: str = "", settings: str = "") -> Recipe:
    """recipes/reviews_encoder.yaml with a tiny teacher and made-up reviews."""
    draw = random.Random(3)
    words = "film plot actor scene light music quiet loud slow fast warm cold clever dull brave small".split()  # noqa: SIM905
    rows = [f"{i}\t{(-3, 3)[i % 2]}\t{' '.join(draw.sample(words, 6))}" for i in range(120)]
    if not (folder / "reviews.tsv").is_file():  # its time counts
        (folder / "reviews.tsv").write_text("\n".join(rows))
    shape = encoder or f"shape: {{layers: 1, hidden: 16, heads: 2}}, tokenizer: '{teacher}'"
    return potstill.load_recipe(
        ROOT / "recipes" / "reviews_encoder.yaml",
        f"prompts.source={folder / 'reviews.tsv'}",
        "prompts.split={train: 48, validation: 12, test: 24}",
        f"teacher.model={teacher}",
        "verify=null",
        f"student={{start: '{teacher}', licence: mit, layers: 1}}",
        "teacher.examples=[]",
        "train.epochs=1",
        "evaluate={uncached_prompts: 2, generate_prompts: 2, resamples: 100}",
        f"arms.encoder={{student: {{kind: encoder, {shape}}}, train: {{{settings or 'epochs: 2, batch_size: 8'}}}}}",
        *more,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path]) -> Made:
    place = tmp_path_factory.mktemp("encoder")
    teacher = make_tiny_model(place / "teacher")
    before = fingerprint(teacher)
    recipe = small(place, teacher)
    potstill.distill(recipe, folder=place / "run")
    return Made(place / "run", recipe, teacher, before)


def test_it_is_an_arm_in_scores_and_report(made: Made) -> None:
    scores = json.loads((made.folder / "scores.json").read_text())
    assert list(scores["arms"]) == ["teacher", "teacher_raw", "student", "encoder", "tfidf"]
    arm = scores["arms"]["encoder"]
    assert arm["accuracy"]["n"] == 24 and {"kl_to_teacher", "ece", "parameters", "prompts_per_second"} <= set(arm)
    assert set(scores["paired"]["student - encoder"]) == {"accuracy", "agreement", "kl_to_teacher"}
    assert "encoder" in scores["gap_recovered"]
    report = (made.folder / "report.html").read_text()
    assert "an encoder of 1 layers of width 16, its weights random" in report
    assert "encoder" in (made.folder / "arms" / "encoder" / "model" / "README.md").read_text()
    steps = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    mine = [row for row in steps if row["arm"] == "encoder"]
    assert len(mine) == 12 and {"kd", "ce"} <= set(mine[0]) and "validation_kl_to_teacher" in mine[-1]


def test_its_folder_alone_gives_the_choices_with_the_stored_probabilities(made: Made) -> None:
    folder = made.folder / "arms" / "encoder" / "model"
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "negative", 1: "positive"}
    with Requests(RunFolder(made.folder).test("encoder") / "ledger.sqlite") as requests:
        prompt, sample = next(iter(requests.samples()))
    logp = sample.choice_logprobs
    assert prompt.split == "test" and logp is not None
    [said] = pipeline("text-classification", model=str(folder), top_k=None)([prompt.text])
    p = {row["label"]: row["score"] for row in said}
    assert p["negative"] == pytest.approx(math.exp(logp[0]), abs=1e-5)
    assert p["positive"] == pytest.approx(math.exp(logp[1]), abs=1e-5)


def test_the_teacher_is_as_it_was(made: Made) -> None:
    assert fingerprint(made.teacher) == made.teacher_before


def test_another_encoder_repeats_nothing_else_and_starts_from_a_folder(made: Made) -> None:
    start = made.folder / "arms" / "encoder" / "model"
    begins = f"start: '{start}', licence: mit"
    again = small(made.folder.parent, made.teacher, encoder=begins, settings="epochs: 1, batch_size: 8")
    elsewhere, seen = made.folder.parent / "again", list[Progress]()
    # the start lies in the run's own folder: copied, so that the run does not write over what it starts from
    elsewhere.mkdir()
    for path in made.folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            (elsewhere / path.relative_to(made.folder)).parent.mkdir(parents=True, exist_ok=True)
            (elsewhere / path.relative_to(made.folder)).write_bytes(path.read_bytes())
    before = fingerprint(start)
    potstill.distill(again, folder=elsewhere, watch=seen.append)
    done = {p.what for p in seen if p.note == "already done"}
    assert {"student", "generate", "verify"} <= done and "encoder" not in done
    assert fingerprint(start) == before != fingerprint(elsewhere / "arms" / "encoder" / "model")
    assert AutoTokenizer.from_pretrained(elsewhere / "arms" / "encoder" / "model")("good").keys() == {
        "input_ids",
        "attention_mask",
    }


def test_the_plan_names_it(made: Made) -> None:
    assert any("encoder: up to 48 examples x 2 epochs" in work.what for work in plan(made.recipe).work)


def test_hard_labels_where_the_method_says_so(made: Made, tmp_path: Path) -> None:
    recipe = small(made.folder.parent, made.teacher, "train.method={kind: sft}")
    potstill.distill(recipe, folder=tmp_path / "run", through="train")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("kd" not in row and "ce" in row for row in rows if row["arm"] == "encoder")


def test_it_minimises_the_divergence_that_the_recipe_names(made: Made, tmp_path: Path) -> None:
    trained = set[str]()
    shapes = ("", ", divergence: reverse_kl", ", divergence: jsd, beta: 0.1", ", divergence: jsd, beta: 0.9")
    for more in (*shapes, ", divergence: skew_reverse_kl, skew: 0.3"):
        recipe = small(made.folder.parent, made.teacher, f"train.method={{kind: logit_kd{more}}}")
        potstill.distill(recipe, folder=tmp_path / "run", through="train")
        trained.add(fingerprint(tmp_path / "run" / "arms" / "encoder" / "model"))
    assert len(trained) == len(shapes) + 1


@pytest.mark.parametrize(
    ("encoder", "settings", "said"),
    [
        ("licence: mit", "", "exactly one of 'start' and 'shape'"),
        ("start: a/b", "", "'licence' is that of 'start'"),
        ("shape: {hidden: 30, heads: 4}, tokenizer: a/b", "", "'hidden' is 30"),
        ("shape: {}", "", "'tokenizer' goes with a 'shape'"),
        ("shape: {}, tokenizer: a/b", "epoch: 3", "did you mean 'epochs'"),
        ("start: ./nowhere, licence: mit", "", "there is no model at './nowhere'"),
    ],
)
def test_a_wrong_arm_is_one_sentence(made: Made, encoder: str, settings: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(small(made.folder.parent, made.teacher, encoder=encoder, settings=settings))


def test_the_licence_of_its_start_counts(made: Made, tmp_path: Path) -> None:
    recipe = small(made.folder.parent, made.teacher, encoder="start: a/b, licence: nobody-knows")
    with pytest.raises(LicenceRefused, match=r"arms\.encoder\.student\.licence"):
        potstill.distill(recipe, folder=tmp_path / "run")
    with pytest.raises(LicenceRefused, match=r"arms\.encoder\.student\.licence"):
        plan(recipe)
    assert not (tmp_path / "run").exists()


def test_a_resolved_recipe_with_an_encoder_loads_again(made: Made, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(as_yaml(made.recipe))
    assert potstill.load_recipe(tmp_path / "again.yaml") == made.recipe
