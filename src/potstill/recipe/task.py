"""What kind of answer is wanted (`task`): a text, or one of a few allowed answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from potstill.recipe.values import Positive, Values, by_kind

Probabilities = Literal["prompt_logprobs", "completions", "top_logprobs", "votes"]


class Text(Values):
    """Answers are texts; checks say which are right."""

    kind: Literal["text"] = "text"


class Choice(Values):
    """The answer is one of a few. The teacher's distribution over them is calibrated to `prior`, what its average
    answer should be, and to a temperature that is fitted on the validation prompts with a reference.

    A model in this process says the distribution itself. A server or a GGUF is asked for it as `probabilities` says; by
    default in the first of these ways that the recipe has what is needed for.
    """

    kind: Literal["choice"]
    choices: tuple[str, ...] = Field(min_length=2)
    prior: tuple[Positive, ...] | None = None
    probabilities: Probabilities | None = Field(
        None,
        description="prompt_logprobs: each choice is scored as a continuation (vLLM; needs `engine.tokenizer`); "
        "completions: the prompt in the teacher's own template is continued by one token (needs `engine.template`); "
        "top_logprobs: of a chat reply's first token; votes: `generate.n` answers at temperature 1",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Choice:
        if len(set(self.choices)) != len(self.choices) or not all(c.strip() == c != "" for c in self.choices):
            raise ValueError("'choices' must be distinct, not empty, without surrounding blanks")
        if self.prior is not None and len(self.prior) != len(self.choices):
            raise ValueError(f"'prior' has {len(self.prior)} values for {len(self.choices)} choices")
        if self.prior is not None and abs(sum(self.prior) - 1) > 1e-6:
            raise ValueError(f"'prior' sums to {sum(self.prior):g}, not to 1")
        return self


Task = Annotated[Annotated[Text, Tag("text")] | Annotated[Choice, Tag("choice")], by_kind("text")]
