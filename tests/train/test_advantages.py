"""What own answers are worth, what a pass makes of it, and students that learn by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_on_policy import kl_on_own_text, recipe_on_policy
from test_soft_targets import TOLD, rows
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.cli import execute
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.errors import InputError
from potstill.models.forward import hidden_rows
from potstill.models.load import codec_of
from potstill.models.student import first_layers
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.methods import LogitKd, Method, PolicyGradient
from potstill.recipe.on_policy import OnPolicy, TaskReward
from potstill.recipe.train import TrainSettings
from potstill.records import Message, Sample
from potstill.store.examples import read_examples
from potstill.store.metrics import Metrics
from potstill.store.requests import Requests
from potstill.text.tokens import Ids
from potstill.train.advantages import Advantages, judged, verdicts_by
from potstill.train.batch import Own, Row, Whole, collate
from potstill.train.methods import terms
from potstill.train.rollout_buffer import RolloutBuffer
from potstill.train.rows import example_rows
from potstill.train.teaching import LiveTeacher
from potstill.train.validation import HeldOutPrompts
from potstill.verify.rewards import rewarding

TOKEN = PolicyGradient(kind="policy_gradient")
SEQUENCE = PolicyGradient(kind="policy_gradient", level="sequence", clip=None)
REVERSE = LogitKd(kind="logit_kd", divergence="reverse_kl", alpha=0.0)


@pytest.fixture
def teacher(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@torch.no_grad()
def logp(model: PreTrainedModel, prefix: Ids, target: Ids) -> torch.Tensor:
    made = model(torch.tensor([[*prefix, *target[:-1]]])).logits[0, len(prefix) - 1 :]
    return made.log_softmax(-1)[torch.arange(len(target)), list(target)]


def written_by(model: PreTrainedModel, *, ends_alike: bool = True) -> list[Row]:
    """Rows whose second half the student wrote, two answers to each of its prompts."""
    kept = rows(told=TOLD, ends_alike=ends_alike)
    more = [replace(row, target=(*row.target[1:-1], 9, 2)) for row in kept[2:]]
    own = [(2, kept[2]), (2, more[0]), (3, kept[3]), (3, more[1])]
    return [
        *kept[:2],
        *(
            replace(row, own=Own(prompt=at, cut_off=False, logp=tuple(logp(model, row.prefix, row.target).tolist())))
            for at, row in own
        ),
    ]


def advantages(
    method: LogitKd | PolicyGradient,
    teacher: PreTrainedModel,
    some: Sequence[Row],
    said: Sequence[float | None] | None = None,
    *,
    weight: float = 0.5,
    samples: int = 2,
) -> list[Row]:
    teach = LiveTeacher(teacher, [row.teacher_prefix for row in some])
    verdicts = None if said is None else lambda _: said
    return Advantages(method, samples, weight, teach, verdicts, 64)(some)


def ratios_by_definition(teacher: PreTrainedModel, row: Row) -> list[float]:
    assert row.own is not None
    found = logp(teacher, row.teacher_prefix, row.target) - torch.tensor(row.own.logp)
    found[row.scored :] = 0
    return found.tolist()


def values(some: Sequence[Row], name: str) -> list[list[float]]:
    return [list(getattr(row.own, name)) for row in some if row.own is not None]


def test_a_tokens_worth_is_its_log_ratio_and_later_ones_discounted(teacher: PreTrainedModel) -> None:
    some = written_by(first_layers(teacher, 2), ends_alike=False)
    ratios = [ratios_by_definition(teacher, row) for row in some[2:]]
    alone = advantages(TOKEN, teacher, some)
    assert alone[:2] == some[:2]
    for mine, wanted in zip(values(alone, "advantage"), ratios, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-5) and mine[-1] == 0.0
    later = advantages(PolicyGradient(kind="policy_gradient", discount=0.9), teacher, some)
    for mine, one in zip(values(later, "advantage"), ratios, strict=True):
        wanted = [sum(0.9 ** (k - t) * one[k] for k in range(t, len(one))) for t in range(len(one))]
        assert mine == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_sequences_worth_is_its_sum_less_that_of_the_others(teacher: PreTrainedModel, samples: int) -> None:
    some = written_by(first_layers(teacher, 2))
    sums = [sum(ratios_by_definition(teacher, row)) for row in some[2:]]
    found = values(advantages(SEQUENCE, teacher, some, samples=samples), "advantage")
    for i, mine in enumerate(found):
        others = [sums[i ^ 1]] if samples == 2 else [s for k, s in enumerate(sums) if k != i]
        assert mine == pytest.approx([sums[i] - sum(others) / len(others)] * len(mine), abs=1e-4)


def test_an_undecided_answer_has_no_reward_and_is_no_baseline(teacher: PreTrainedModel) -> None:
    some = written_by(first_layers(teacher, 2))
    found = advantages(REVERSE, teacher, some, [1.0, 0.0, None, 1.0], weight=2.0)
    gains = [one[0] for one in values(found, "advantage")]
    assert gains == [2.0, -2.0, 0.0, 2.0]  # the last one has nobody to be compared with
    assert [row.own and row.own.reward for row in found[2:]] == [1.0, 0.0, None, 1.0]
    together = advantages(REVERSE, teacher, some, [1.0, 0.0, None, 1.0], weight=3.0, samples=1)
    assert [one[0] for one in values(together, "advantage")] == pytest.approx([1.5, -3.0, 0.0, 1.5])
    both = advantages(TOKEN, teacher, some, [1.0, 0.0, None, 1.0], weight=2.0)
    pairs = zip(values(both, "advantage"), values(both, "log_ratio"), gains, strict=True)
    assert all(mine == pytest.approx([r + gain for r in ratio], abs=1e-5) for mine, ratio, gain in pairs)


def stale(row: Row, seed: int) -> Row:
    """As if another policy had written it: its log-probabilities are some tenths off."""
    if row.own is None:
        return row
    off = 0.2 * torch.randn(len(row.target), generator=torch.Generator().manual_seed(seed))
    return replace(row, own=replace(row.own, logp=tuple((torch.tensor(row.own.logp) + off).tolist())))


METHODS: dict[str, Method] = {
    "token": PolicyGradient(kind="policy_gradient", discount=0.5, clip=0.1),
    "sequence": SEQUENCE,
    "answers": PolicyGradient(kind="policy_gradient", mean="answers", clip=None),
    "divergence": REVERSE,
}


def by_definition(method: Method, student: PreTrainedModel, teacher: PreTrainedModel, some: list[Row]) -> torch.Tensor:
    """In float64, one answer at a time."""
    weights = [row.weight for row in some]
    whole = sum(w * len(row.target) for w, row in zip(weights, some, strict=True))
    loss = torch.zeros((), dtype=torch.float64)
    for row, weight in zip(some, weights, strict=True):
        made = student(torch.tensor([[*row.prefix, *row.target[:-1]]])).logits[0, len(row.prefix) - 1 :]
        all_NV = made.log_softmax(-1)
        logq = all_NV[torch.arange(len(row.target)), list(row.target)]
        if isinstance(method, LogitKd):
            ids = torch.tensor([[*row.teacher_prefix, *row.target[:-1]]])
            theirs_NV = teacher(ids).logits[0, len(row.teacher_prefix) - 1 :].log_softmax(-1).detach()
            loss = loss + weight * (all_NV.exp() * (all_NV - theirs_NV)).sum() / whole
        if row.own is None:
            loss = loss - (0 if isinstance(method, LogitKd) else weight * logq.sum() / whole)
            continue
        gain, old = torch.tensor(row.own.advantage).double(), torch.tensor(row.own.logp).double()
        sequence = isinstance(method, PolicyGradient) and method.level == "sequence"
        ratio = (logq - old).sum().exp() if sequence else (logq - old).exp()
        part = ratio * (gain[0] if sequence else gain)
        clip = method.clip if isinstance(method, PolicyGradient) else None
        if clip is not None:
            part = torch.minimum(part, ratio.clamp(1 - clip, 1 + clip) * gain)
        loss = loss - weight * part.sum() / whole
    return loss


@pytest.mark.parametrize("size", [6, 1])
@pytest.mark.parametrize("name", list(METHODS))
def test_gradients_are_those_of_the_definition_however_the_step_is_split(
    teacher: PreTrainedModel, name: str, size: int
) -> None:
    method, student = METHODS[name], first_layers(teacher, 2)
    assert isinstance(method, LogitKd | PolicyGradient)
    some = [replace(stale(row, i), weight=1 + i / 4) for i, row in enumerate(written_by(student))]
    some = advantages(method, teacher, some, [1.0, 0.0, 0.0, None])
    if name == "answers":
        assert [row.weight * len(row.target) for row in some] == pytest.approx([1 + i / 4 for i in range(6)])
    teach = LiveTeacher(teacher, [row.teacher_prefix for row in some])
    total = 0.0
    for begin in range(0, len(some), size):
        part = some[begin : begin + size]
        batch = collate(part, (), whole=Whole.of(some), device=torch.device("cpu"))
        hidden_RD = hidden_rows(student, batch.documents, batch.at_R)
        signal = teach(part) if isinstance(method, LogitKd) else None
        loss, logged = terms(method, student, hidden_RD, batch, signal=signal)
        parts = ("policy", "kd" if isinstance(method, LogitKd) else "ce")
        assert loss.item() == pytest.approx(sum(logged.get(part, 0.0) for part in parts), abs=1e-4)
        loss.backward()
        total += loss.item()
    reference = first_layers(teacher, 2).double()
    wanted = by_definition(method, reference, first_layers(teacher, 4).double(), some)
    wanted.backward()
    assert total == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=5e-6, rtol=5e-4)


def test_drawn_tokens_give_the_gradient_of_the_whole_distribution(teacher: PreTrainedModel) -> None:
    """The first token of real rollouts: 24 lots of 64, each a gradient; their mean against the exact one, 3 sigma."""
    student, asked = first_layers(teacher, 2), tuple(range(20, 30))
    teach = LiveTeacher(teacher, [asked])

    def gradient(some: Sequence[Row], method: Method) -> torch.Tensor:
        student.zero_grad()
        batch = collate(some, (), whole=Whole.of(some), device=torch.device("cpu"))
        signal = teach(some) if isinstance(method, LogitKd) else None
        terms(method, student, hidden_rows(student, batch.documents, batch.at_R), batch, signal=signal)[0].backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).double()

    exact = gradient([Row(prefix=asked, target=(5,), teacher_prefix=asked)], REVERSE)
    drawn = Rollouts(student, slots=64, capacity_tokens=16, end_ids=[2]).roll_out(
        [asked], n=24 * 64, sampling=Sampling(seed=1), max_new_tokens=1
    )
    own = [Own(prompt=0, cut_off=True, logp=one.logp) for one in drawn]
    some = [Row(prefix=asked, target=one.ids, teacher_prefix=asked, own=o) for one, o in zip(drawn, own, strict=True)]
    worth = advantages(TOKEN, teacher, some)
    lots = torch.stack([gradient(worth[i : i + 64], TOKEN) for i in range(0, len(worth), 64)])
    along = lots @ (exact / exact.norm())
    noise = along.std().item() / 24**0.5
    assert abs(along.mean().item() - exact.norm().item()) < 3 * noise
    assert exact.norm().item() > 3 * noise


def test_own_rows_say_how_they_were_written(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    how = OnPolicy(max_tokens=4, slots=3, warm_up=0.0, samples=3)
    own = RolloutBuffer.here(model, how, end_of_turn=2, longest_prefix=2, seed=1)
    given = [Row(prefix=(5, 6 + i), target=(9, 2), teacher_prefix=(7, 5, 6 + i)) for i in range(4)]
    written = own(lambda _: given, 2, 8)
    assert [row.own and row.own.prompt for row in written] == [i for i in range(4) for _ in range(3)]
    assert len({row.target for row in written}) > 6
    for row in written:
        assert row.own is not None and row.own.cut_off == (row.target[-1] != 2)
        # written in the machine's precision
        assert list(row.own.logp) == pytest.approx(logp(model, row.prefix, row.target).tolist(), abs=0.05)


def test_checks_read_an_own_answer_as_they_read_a_teachers(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="student")
    asked = [Message(role="user", content="film")]
    heard: list[Sample] = []

    def reward(answers: Sequence[Sample]) -> list[float | None]:
        heard.extend(answers)
        return [1.0] * len(answers)

    end = codec.end_of_turn("x")
    said = (*codec.tokenizer.encode("<think>dull</think>a nap", add_special_tokens=False).ids, end)
    row = Row(prefix=codec.prefix(asked), target=said, own=Own(prompt=0, cut_off=False, logp=()), prompt_id="7")
    cut = replace(row, target=said[:-1], own=Own(prompt=0, cut_off=True, logp=()))
    assert verdicts_by(reward, codec)([row, cut]) == [1.0, 1.0]
    assert [s.prompt_id for s in heard] == ["7", "7"]
    assert [(s.text, s.reasoning, s.cut_off) for s in heard] == [("a nap", "dull", False), ("a nap", "dull", True)]


def opinionated(folder: Path, make: Callable[..., Path]) -> Path:
    """A teacher of random weights that says something: they are larger."""
    teacher = AutoModelForCausalLM.from_pretrained(make(folder, seed=1), dtype=torch.float32)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2.0)
    teacher.save_pretrained(folder)
    return folder


def test_a_policy_gradient_brings_the_student_nearer_to_its_teacher(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    folder = opinionated(tmp_path / "teacher", make_tiny_model)
    how = {"max_tokens": 6, "warm_up": 0.0, "slots": 32, "samples": 4}
    method = {"kind": "policy_gradient"}
    recipe = load_recipe(recipe_on_policy(tmp_path, tiny_model, folder, method=method, on_policy=how, epochs=8))
    Run(recipe, tmp_path / "run").generate()
    Run(recipe, tmp_path / "run").verify()
    made = Run(recipe, tmp_path / "run").train()["student"]
    start = first_layers(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), 2)
    student, judge = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32).eval() for m in (made, folder))
    prompts = [codec_of(tiny_model, None, name="student").prefix([Message(role="user", content="say nap idea")])]
    before, after = (kl_on_own_text(model, judge, prompts) for model in (start, student))
    assert after < 0.6 * before
    logged = Metrics(tmp_path / "run" / "metrics.jsonl").rows("student")
    assert sum(row["reverse_kl"] for row in logged[-4:]) / 4 < 0.6 * logged[0]["reverse_kl"]


def rewarded(folder: Path, model: Path, teacher: Path, **train: object) -> Path:
    how = {"max_tokens": 4, "warm_up": 0.0, "slots": 32, "samples": 4, "reward": {"weight": 1.0}}
    path = recipe_on_policy(folder, model, teacher, **{"on_policy": how, **train})
    text = path.read_text().replace("- kind: exact\n", "- kind: regex\n    pattern: '[aeiou]'\n", 1)
    path.write_text(text)
    return path


def test_what_the_checks_pass_becomes_more_frequent(teacher: PreTrainedModel) -> None:
    """Even tokens are right. Best is p e^(wR): odds of e^w to 1 for them, where the teacher has even ones."""
    student = first_layers(teacher, 2)
    asked = Row(prefix=(20, 21), target=(5, 2), teacher_prefix=(20, 21))
    how = OnPolicy(max_tokens=1, slots=64, warm_up=0.0, samples=64)
    own = RolloutBuffer.here(student, how, end_of_turn=2, longest_prefix=2, seed=1)
    teach = LiveTeacher(teacher, [asked.teacher_prefix])
    judge = Advantages(TOKEN, how.samples, 3.0, teach, lambda some: [1.0 - row.target[0] % 2 for row in some], 64)
    optimizer, passed = torch.optim.Adam(student.parameters(), lr=0.01), list[float]()
    for step in range(40):
        some = judge(own(lambda _: [asked], step, 40))
        batch = collate(some, (), whole=Whole.of(some), device=torch.device("cpu"))
        loss, logged = terms(TOKEN, student, hidden_rows(student, batch.documents, batch.at_R), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        passed.append(logged["reward"])
    assert passed[0] < 0.7 and sum(passed[-5:]) / 5 > 0.85, passed


def test_a_rewarded_divergence_resumes_to_the_bit(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    path = rewarded(tmp_path, tiny_model, teacher, epochs=2, checkpoint_seconds=1e-6)
    recipe = load_recipe(path, ["train.on_policy.share=0.7"])

    def weights(run: Path, stops: Sequence[int]) -> dict[str, torch.Tensor]:
        Run(recipe, run).generate()
        Run(recipe, run).verify()
        for stop in stops:

            def watch(progress: object, stop: int = stop) -> None:
                if getattr(progress, "stage", "") == "train" and getattr(progress, "done", 0) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                Run(recipe, run, watch).train()
        return AutoModelForCausalLM.from_pretrained(Run(recipe, run).train()["student"]).state_dict()

    whole, resumed = weights(tmp_path / "a", []), weights(tmp_path / "b", [3])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [Metrics(tmp_path / run / "metrics.jsonl").rows("student") for run in ("a", "b")]
    assert logs[0] == logs[1] and all({"kd", "policy", "reward"} <= row.keys() for row in logs[0][:1])


@pytest.mark.parametrize(("second", "wanted"), [("majority", [1.0, 0.0, 0.0]), ("number", [None, 0.0, 0.0])])
def test_the_recipes_checks_are_the_reward(
    second: str, wanted: list[float | None], tmp_path: Path, tiny_model: Path
) -> None:
    """Votes are not asked; of a number where the reference holds none the check cannot say."""
    changes = ["train.on_policy.reward={}", f"verify.checks=[{{kind: exact}}, {{kind: {second}}}]"]
    recipe = load_recipe(recipe_on_policy(tmp_path, tiny_model, tiny_model), changes)
    Run(recipe, tmp_path / "run").generate()
    said = [("good dull", False), ("good nap", False), ("good dull", True)]
    with Requests(tmp_path / "run" / "ledger.sqlite") as requests, rewarding(recipe, requests.prompts()) as reward:
        (asked_of,) = (prompt.id for prompt in requests.prompts() if prompt.text == "say good dull")
        asked = [Sample(prompt_id=asked_of, text=text, cut_off=cut_off) for text, cut_off in said]
        assert reward(asked) == wanted
        assert reward(asked[1:]) == wanted[1:]  # by the same processes


def test_two_prompts_of_one_text_are_judged_by_their_own_references(tmp_path: Path, tiny_model: Path) -> None:
    """From the prompts' file to the rows' rewards: answers are shared, references are not."""
    recipe_on_policy(tmp_path, tiny_model, tiny_model)
    lines = [{"q": "say good dull", "a": answer} for answer in ("good dull", "what?")]
    (tmp_path / "learn.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe, run = load_recipe(tmp_path / "recipe.yaml", ["train.on_policy.reward={}"]), tmp_path / "run"
    assert Run(recipe, run).generate().totals["attempts"] == 3, "one question"
    Run(recipe, run).verify()
    kept = list(read_examples(run / "examples" / "selected.parquet"))
    codec = codec_of(tiny_model, None, name="student")
    own = Own(prompt=0, cut_off=True, logp=())
    rows = [replace(row, own=own) for row in example_rows(kept, codec, reasoning=False)]
    assert len({row.prefix for row in rows}) == 1 and len({row.prompt_id for row in rows}) == 2
    said = {text: codec.tokenizer.encode(text, add_special_tokens=False).ids for text in ("good dull", "what?")}
    with Requests(run / "ledger.sqlite") as requests, rewarding(recipe, requests.prompts()) as reward:
        wanted = {prompt.id: str(prompt.reference) for prompt in requests.prompts()}
        asked = [
            replace(row, target=(*said[wanted[row.prompt_id]], 2), own=replace(own, cut_off=False)) for row in rows
        ]
        assert verdicts_by(reward, codec)(asked) == [1.0] * len(asked)
        crossed = [replace(row, prompt_id=other.prompt_id) for row, other in zip(asked, asked[::-1], strict=True)]
        assert verdicts_by(reward, codec)(crossed) == [0.0] * len(asked)
    with_quiz = HeldOutPrompts.of(rows, lambda asked: [1.0] * len(asked), end_of_turn=2, max_tokens=2)
    assert {row.prompt_id for row in with_quiz.questions} == {row.prompt_id for row in rows}


def test_a_prompt_that_is_gone_is_named(tmp_path: Path, tiny_model: Path) -> None:
    recipe = load_recipe(rewarded(tmp_path, tiny_model, tiny_model, epochs=1))
    Run(recipe, tmp_path / "run").generate()
    Run(recipe, tmp_path / "run").verify()
    (tmp_path / "learn.jsonl").write_text('{"q": "something new", "a": "new"}\n')
    (tmp_path / "answers.jsonl").write_text('{"prompt": "something new", "answer": "new"}\n')
    Run(recipe, tmp_path / "run").generate()
    with pytest.raises(InputError, match=r"not in the recipe any more: '\w+'; potstill verify first"):
        Run(recipe, tmp_path / "run").train()


def test_a_reward_that_nobody_gives_is_refused(teacher: PreTrainedModel) -> None:
    teach = LiveTeacher(teacher, [(5, 6)])
    how = OnPolicy(reward=TaskReward())  # pyright: ignore[reportCallIssue]
    train = TrainSettings(method=TOKEN, on_policy=how)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match="hand down `rewarding`"):
        judged(train, how, teach, None)


PG = "train.method={kind: policy_gradient}"
MISTAKES = {
    "nobody writes": ([PG, "train.on_policy=null"], "add 'on_policy'"),
    "other temperature": ([PG, "train.on_policy.temperature=0.7"], "'on_policy.temperature' is 0.7"),
    "a truncated policy": ([PG, "train.on_policy.top_p=0.9"], "'on_policy.top_p' is 0.9"),
    "two returns": (["train.method={kind: policy_gradient, level: sequence, discount: 0.5}"], "'discount' belongs"),
    "a cache": ([PG, "train.signal={kind: hidden}"], "'signal' must be live"),
    "nobody rewards": (["train.on_policy.reward={}", "verify=null"], "add such a check"),
    "only votes": (["train.on_policy.reward={}", "verify.checks=[{kind: majority}]"], "add such a check"),
    "rewards elsewhere": (
        ["train.on_policy.reward={}", "train.on_policy.temperature=0.5"], "'on_policy.temperature' is 0.5"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, said = MISTAKES[name]
    path = recipe_on_policy(tmp_path, tiny_model, tiny_model)
    words = ["train", str(path), "--run", str(tmp_path / "run"), *(w for o in overrides for w in ("--set", o))]
    assert execute(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
