"""Which answers are good (`verify`).

Every check is a small value. What a check compares with (a person's answer, unit tests, a task's own record) stands in
the column that `prompts.columns.reference` names, and never reaches training.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from potstill.recipe.teacher import Batches, Server, Teacher
from potstill.recipe.values import Count, Name, Positive, Probability, Values


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compilable)]


class Extracting(Values):
    """`extract`: a regular expression; the first group of its last match is what is checked. Nothing found: failed."""

    extract: Pattern | None = None


class Exact(Extracting):
    """The reference, to the letter; `normalise` forgives case, blanks, Unicode form and closing punctuation."""

    kind: Literal["exact"]
    normalise: bool = False


class OneOf(Extracting):
    """One of some allowed answers."""

    kind: Literal["one_of"]
    choices: tuple[str, ...] = Field(min_length=1)
    normalise: bool = False


class MultipleChoice(Extracting):
    """The reference's choice, in whichever form: B, (B), **B**, "B) Paris", "The answer is B.", \\boxed{B}. What is
    said last counts; of several choices without a word that one is the answer, none."""

    kind: Literal["multiple_choice"]
    choices: tuple[str, ...] = Field(("A", "B", "C", "D"), min_length=2, description="the letters or numbers")


class Regex(Values):
    """The pattern occurs (or, with `absent`, does not)."""

    kind: Literal["regex"]
    pattern: Pattern
    absent: bool = False


class Number(Extracting):
    """The answer's last number equals the reference's, within |a - b| <= max(absolute, relative * |b|)."""

    kind: Literal["number"]
    absolute: Annotated[float, Field(ge=0)] = 0.0
    relative: Annotated[float, Field(ge=0)] = 1e-6


class Json(Values):
    """The answer is JSON (bare, or in its last fenced block), satisfies the JSON schema, draft 2020-12, and is the
    reference's value, whatever its order of keys and its blanks; 1 is 1.0, and is not true."""

    kind: Literal["json"]
    shape: dict[str, JsonValue] | None = Field(None, description="a JSON schema")
    as_reference: bool = Field(False, description="compare it with the reference")
    prose: bool = Field(False, description="words may stand around it, without a fence")


class Grounded(Values):
    """Every value of the answer's JSON stands in the conversation before it: texts as they are (case and blanks aside),
    numbers by value. Needs no reference: it catches what the teacher made up."""

    kind: Literal["grounded"]
    fields: tuple[str, ...] = Field((), description="only these top-level keys; by default all")


class Maths(Extracting):
    """Mathematically equal to the reference (read by math-verify's parser; the extra `maths`). Of the answer counts its
    last box, or what it says that the answer is. Too slow, or not read from the first to the last character: undecided.
    """

    kind: Literal["maths"]
    seconds: Positive = 5.0


class Code(Values):
    """The answer's Python, all its blocks together, passes the reference's tests, in a sandbox with no network and a
    read-only system."""

    kind: Literal["code"]
    seconds: Positive = 10.0
    memory_mib: Count = 512
    before: str = Field("", description="code that comes before the answer's, such as imports")


class Gym(Values):
    """reasoning-gym's own scorer, for prompts of kind reasoning_gym. Passed from `at_least` on."""

    kind: Literal["reasoning_gym"]
    at_least: Probability = 1.0


class Length(Values):
    """`unit`: words are what blanks divide; of Chinese, Japanese, Thai and their like they are estimated. Tokens are
    those of a `tokenizer`."""

    kind: Literal["length"]
    unit: Literal["characters", "words", "tokens"] = "words"
    tokenizer: str | None = Field(None, description="a model folder or hub id with tokenizer.json (unit: tokens)")
    least: Annotated[int, Field(ge=0)] = 1
    most: Count | None = None

    @model_validator(mode="after")
    def _tokens_of_whom(self) -> Length:
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise ValueError("'tokenizer' goes with 'unit: tokens', and only with it: whose tokens are counted?")
        return self


class Language(Values):
    """The answer's language by py3langid (the extra `checks`). An answer of fewer than `least_words` passes unjudged:
    nobody can tell the language of "OK"."""

    kind: Literal["language"]
    language: str = Field(pattern="^[a-z]{2}$", description="ISO 639-1, such as en")
    least_words: Count = 5


class Repetition(Values):
    """At most `share` of the word n-grams repeat an earlier one, and the end is no loop of four or more turns."""

    kind: Literal["repetition"]
    words: Count = 4
    share: Probability = 0.5


class Reasoning(Values):
    """There is reasoning, it came to its end, an answer follows it, and no thinking tag is left in either."""

    kind: Literal["reasoning"]


class Majority(Extracting):
    """Self-consistency (Wang et al. 2023): the prompt's most frequent answer, if at least `share` of them agree."""

    kind: Literal["majority"]
    share: Probability = 0.5


class Function(Values):
    """Your own `module:function`. It takes (prompt, answer, reference) and returns True, False or None (undecided), or
    a number from 0 to 1, passed from `at_least` on."""

    kind: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    at_least: Probability = 0.5
    seconds: Positive = 10.0


class Confidence(Values):
    """The teacher's calibrated probability of its answer (choices)."""

    kind: Literal["confidence"]
    at_least: Probability


class AllowedMass(Values):
    """What the teacher gives to all allowed answers together, before calibration (choices)."""

    kind: Literal["allowed_mass"]
    at_least: Probability


class Judge(Values):
    """A language model's opinion of answers that passed everything that costs nothing. Its replies are a run of their
    own in `judge/NAME/`: in a ledger, paid once. Undecided where its last line is not as asked.

    By a `rubric`, it ends with `Score: 7`, a whole number within `scale`; the score is that number's place in the
    scale, from 0 to 1. `pairwise`, it compares a prompt's answers two by two, each pair in both orders, and ends with
    `Better: A`, `Better: B` or `Better: tie`; what both orders agree on is a win, all else half of one, and the score
    is the share of wins. An answer without a rival passes unscored: a comparison cannot say that it is bad.
    """

    kind: Literal["judge"]
    name: Name = "judge"
    teacher: Teacher = Field(description="who judges; its instructions come first, then the rubric and the answer")
    rubric: str = Field(min_length=1, description="what makes an answer good")
    at_least: Probability = 0.7
    scale: tuple[int, int] = (1, 10)
    pairwise: bool = False
    opponents: Count = Field(2, description="pairwise: each answer meets the next so many of its prompt, in a ring")
    max_tokens: Count = 512
    budget: Positive | None = Field(None, description="US dollars for this judge, never exceeded")
    prices: str | None = Field(None, description="a price file such as recipes/prices.yaml")

    @model_validator(mode="after")
    def _consistent(self) -> Judge:
        if self.scale[0] < 0 or self.scale[0] >= self.scale[1]:
            raise ValueError(f"'scale' is {list(self.scale)}: give the worst and the best score, from 0 up")
        if self.budget is not None and not (self.prices and isinstance(self.teacher.engine, Server | Batches)):
            raise ValueError("'budget' needs a served judge and a price file ('prices')")
        return self


class RewardModel(Values):
    """A sequence classifier that reads the prompt and the answer through its chat template.

    With one output that is the reward: `at_least` compares it as it is, and the score is its sigmoid, so it orders as
    the reward does. With several, `label` names the one whose probability counts.
    """

    kind: Literal["reward_model"]
    model: str = Field(description="a folder or a hub id; safetensors, no code of its own")
    revision: str | None = None
    licence: str
    template: str | None = Field(None, description="chat template (Jinja) in place of the model's own")
    label: str | None = None
    at_least: float | None = Field(None, description="a reward, or a probability; none: it only scores")
    batch_size: Count = 16


Alone = (
    Exact
    | OneOf
    | MultipleChoice
    | Regex
    | Number
    | Json
    | Grounded
    | Maths
    | Code
    | Gym
    | Length
    | Language
    | Repetition
    | Reasoning
    | Function
    | Confidence
    | AllowedMass
)
"""Checks that tell of one answer by itself, at no price."""

Check = Annotated[Alone | Majority | Judge | RewardModel, Field(discriminator="kind")]


class Verify(Values):
    """All checks must pass. An answer of which one is undecided is dropped, or kept where `undecided` says so."""

    checks: tuple[Check, ...] = Field(min_length=1)
    undecided: Literal["drop", "keep"] = "drop"
    processes: Count = 2

    @property
    def judges(self) -> tuple[Judge, ...]:
        return tuple(check for check in self.checks if isinstance(check, Judge))

    @property
    def late(self) -> tuple[Judge | RewardModel, ...]:
        """Checks that are asked last, and only of answers that nothing spoke against: reward models, then judges."""
        return (*(check for check in self.checks if isinstance(check, RewardModel)), *self.judges)

    @property
    def alone(self) -> tuple[Alone, ...]:
        return tuple(check for check in self.checks if isinstance(check, Alone))

    @property
    def licensed(self) -> dict[str, str]:
        """The licences of judges and reward models, by their keys in this section."""
        found: dict[str, str] = {}
        for number, check in enumerate(self.checks):
            if isinstance(check, Judge):
                found[f"checks.{number}.teacher.licence"] = check.teacher.licence
            elif isinstance(check, RewardModel):
                found[f"checks.{number}.licence"] = check.licence
        return found

    @model_validator(mode="after")
    def _judges_have_names(self) -> Verify:
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"two judges are called '{max(names, key=names.count)}': give each its own 'name'")
        return self
