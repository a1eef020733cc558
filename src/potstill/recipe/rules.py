"""What a recipe's sections ask of each other. Each rule raises ValueError with the key, the value and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from potstill.recipe.checks import AllowedMass, Check, Confidence
from potstill.recipe.methods import Sft
from potstill.recipe.prompts import Expand, PromptFile
from potstill.recipe.request import probabilities_of
from potstill.recipe.scoring import LiveSignal
from potstill.recipe.select import Select
from potstill.recipe.student import Encoder, Ranked, Student
from potstill.recipe.task import Choice, Text
from potstill.recipe.teacher import Batches, Engine, Gguf, Local, Server

if TYPE_CHECKING:
    from potstill.recipe.whole import Recipe


def _checks(recipe: Recipe) -> Iterator[Check]:
    yield from recipe.verify.checks if recipe.verify else ()
    yield from recipe.evaluate.checks if recipe.evaluate else ()


def selection_follows_checks(recipe: Recipe) -> None:
    if isinstance(recipe.task, Choice):
        return  # calibrated answers are always judged
    if recipe.verify is None and recipe.select != Select():  # pyright: ignore[reportCallIssue]
        raise ValueError("'select' chooses among checked answers: add 'verify' with its checks")
    if recipe.verify is None and recipe.rescue is not None:
        raise ValueError("'rescue' asks again where no answer passed the checks: add 'verify' with its checks")


def a_student_says_what_is_learnable(recipe: Recipe) -> None:
    if recipe.select.prefer != "learnable":
        return
    match recipe.student:
        case None:
            raise ValueError("'select.prefer: learnable' is the student's own opinion of the answers: add 'student'")
        case Encoder():
            raise ValueError("'select.prefer: learnable' asks a student that writes: 'student' is an encoder")
        case Student(layers=Ranked()):
            raise ValueError(
                "'select.prefer: learnable' asks the student which answers to keep, and ranked 'student.layers' ask "
                "those which layers it has: list the layers, or take them spaced"
            )
        case Student():
            pass


def the_test_set_is_in_one_place(recipe: Recipe) -> None:
    split = recipe.prompts.split if isinstance(recipe.prompts, PromptFile) else None
    if recipe.evaluate is None:
        if split is not None:
            raise ValueError("'prompts.split' holds test prompts out: add 'evaluate', which reads them")
        return
    if recipe.student is None:
        raise ValueError("'evaluate' compares a student with its teacher: add 'student'")
    if (split is None) == (recipe.evaluate.prompts is None):
        raise ValueError("give the test prompts in one of 'prompts.split' and 'evaluate.prompts'")
    if recipe.evaluate.prompts is not None and recipe.evaluate.prompts.split is not None:
        raise ValueError("'evaluate.prompts' is all test prompts: it takes no 'split'")
    if isinstance(recipe.task, Text) and not recipe.evaluate.checks:
        raise ValueError("'evaluate.checks' say which texts are right: name one")


def somebody_says_what_is_right(recipe: Recipe) -> None:
    tested = recipe.test_prompts
    if recipe.evaluate is None or recipe.evaluate.checks or not isinstance(tested, PromptFile):
        return
    if not tested.reference_by_grade and tested.columns.reference is None:
        raise ValueError(
            "'evaluate' needs people's answers, or checks that do without: name 'columns.reference' or "
            "'reference_by_grade' of the test prompts, or 'evaluate.checks'"
        )


def somebody_scores(recipe: Recipe) -> None:
    if isinstance(recipe.task, Choice) or recipe.student is None or isinstance(recipe.train.method, Sft):
        return
    if recipe.scored_by is None:
        raise ValueError(
            f"'train.method' is {recipe.train.method.kind}, but the teacher does not run in this process: name "
            "a model that scores its answers in 'train.scored_by', or learn by 'sft'"
        )


def somebody_rewards(recipe: Recipe) -> None:
    rewards = recipe.train.on_policy is not None and recipe.train.on_policy.reward is not None
    alone = recipe.verify is not None and recipe.verify.alone
    if rewards and not alone:
        raise ValueError(
            "'train.on_policy.reward' is what checks say of one answer by itself: add such a check to "
            "'verify.checks' (judges, reward models and majorities are not asked)"
        )
    if recipe.train.predict_with_generate and not alone:
        raise ValueError(
            "'train.predict_with_generate' has one answer per prompt judged: give 'verify' a check that needs no "
            "other answer, no judge and no reward model"
        )


def the_best_is_scored(recipe: Recipe) -> None:
    if recipe.train.best is None:
        return
    choice = isinstance(recipe.task, Choice)
    scored = ("accuracy", "agreement", "kl_to_teacher") if choice else ("nats_per_token", "kd", "pass_rate")
    metric = recipe.train.best.metric
    if metric not in scored:
        raise ValueError(f"'train.best.metric' {metric} is not scored here: take one of {', '.join(scored)}")


def choices_have_no_text_of_their_own(recipe: Recipe) -> None:
    """On-policy training and kept signals are of students that write."""
    train = recipe.train
    if isinstance(recipe.task, Text):
        if isinstance(recipe.student, Encoder):
            raise ValueError("an encoder answers by choosing: 'task' must be of kind choice")
        if strange := next((c for c in _checks(recipe) if isinstance(c, Confidence | AllowedMass)), None):
            raise ValueError(f"the check '{strange.kind}' is of a distribution over choices: 'task' is text")
        return
    said = {
        "train.on_policy": train.on_policy is not None,
        "train.signal": not isinstance(train.signal, LiveSignal),
        "train.scored_by": train.scored_by is not None,
        "train.predict_with_generate": train.predict_with_generate,
        "train.learn": train.learn != "answer",
        "prompts.kind: expand": isinstance(recipe.prompts, Expand),
    }
    if key := next((key for key, value in said.items() if value), None):
        raise ValueError(f"'{key}' is for tasks of kind text: with choices the teacher's distribution is all there is")


def choices_are_named_everywhere(recipe: Recipe) -> None:
    if not isinstance(recipe.task, Choice):
        return
    ranges = recipe.prompts.reference_by_grade if isinstance(recipe.prompts, PromptFile) else None
    named = {shot.answer for shot in recipe.teacher.examples} | set(ranges or {})
    if strange := sorted(named - set(recipe.task.choices)):
        raise ValueError(f"answer '{strange[0]}' is not one of task.choices {list(recipe.task.choices)}")


def probabilities_can_be_had(recipe: Recipe) -> None:
    if not isinstance(recipe.task, Choice):
        return
    how, n, engine = recipe.task.probabilities, recipe.generate.n, recipe.teacher.engine
    if n > 1 and how not in ("votes", None):
        raise ValueError(f"'generate.n' is {n}: 'task.probabilities' {how} asks once, votes take many")
    if isinstance(engine, Local) and (n > 1 or how is not None):
        key = f"'generate.n' is {n}" if n > 1 else f"'task.probabilities' is {how}"
        raise ValueError(f"{key}: a model in this process says its distribution itself, once")
    if how in ("completions", "top_logprobs", "prompt_logprobs") and not _says_logprobs(engine, how):
        raise ValueError(
            f"'task.probabilities' {how} needs {_NEEDED[how]}: take another way (votes work with any teacher)"
        )
    asked = probabilities_of(recipe.request)
    if asked == "votes" and (recipe.generate.temperature, recipe.generate.top_p) != (1.0, 1.0):
        raise ValueError("votes estimate the teacher's distribution at 'generate.temperature' 1 and 'top_p' 1")


_NEEDED = {
    "prompt_logprobs": "a server in OpenAI's form and its 'teacher.engine.tokenizer'",
    "completions": "a server in OpenAI's form or a GGUF, and its 'teacher.engine.template'",
    "top_logprobs": "a server in OpenAI's form or a GGUF",
}


def _says_logprobs(engine: Engine, how: str) -> bool:
    match engine:
        case Server(form="openai", tokenizer=tokenizer, template=template):
            return {"prompt_logprobs": tokenizer is not None, "completions": template is not None}.get(how, True)
        case Gguf(template=template):
            return how == "top_logprobs" or (how == "completions" and template is not None)
        case _:
            return False


def templates_are_read(recipe: Recipe) -> None:
    """A teacher that writes texts is asked in messages, and whoever serves it puts them into its template."""
    engine = recipe.teacher.engine
    read = isinstance(recipe.task, Choice) and not (isinstance(engine, Server) and engine.form == "anthropic")
    if read or not isinstance(engine, Server | Gguf):
        return
    if engine.template is not None or (isinstance(engine, Server) and engine.tokenizer is not None):
        key = "template" if engine.template is not None else "tokenizer"
        raise ValueError(f"'teacher.engine.{key}' is for choices in OpenAI's form: all else is asked for in messages")


def controls_fit_the_task(recipe: Recipe) -> None:
    choice = isinstance(recipe.task, Choice)
    of_choices, of_texts = {"hard_labels", "tfidf"}, {"sft"}
    if wrong := sorted(set(recipe.compared) & (of_texts if choice else of_choices)):
        other = "sft is of texts, hard_labels of choices" if "tfidf" not in wrong else "tfidf knows choices alone"
        raise ValueError(f"the control '{wrong[0]}' does not fit 'task.kind' {recipe.task.kind}: {other}")
    taken = {"student", "teacher", "teacher_raw", "base", "from_scratch", "hard_labels", "sft", "tfidf"}
    if wrong := sorted(taken & set(recipe.arms)):
        raise ValueError(f"the arm name '{wrong[0]}' is taken: give 'arms.{wrong[0]}' another")
    if recipe.arms and recipe.student is None:
        raise ValueError("'arms' override the student: add 'student'")


def rescue_asks_something_new(recipe: Recipe) -> None:
    sure = recipe.generate.temperature == 0 or isinstance(recipe.task, Choice)
    for number, again in enumerate(recipe.rescue.tries if recipe.rescue else ()):
        if sure and again.hint is None and again.teacher is None:
            why = "of choices" if isinstance(recipe.task, Choice) else "at temperature 0"
            raise ValueError(
                f"'rescue.tries.{number}' asks the same teacher the same {why}: give the try a 'hint' or a 'teacher'"
                + ("" if isinstance(recipe.task, Choice) else ", or raise 'generate.temperature'")
            )


def budgets_have_prices(recipe: Recipe) -> None:
    tested = recipe.evaluate.budget if recipe.evaluate else None
    paid = isinstance(recipe.teacher.engine, Server | Batches)
    tries = range(1, len(recipe.rescue.tries) + 1) if recipe.rescue else ()
    again = any(isinstance(recipe.asked(number).engine, Server | Batches) for number in tries)
    saved = recipe.rescue.budget if recipe.rescue else None
    for key, budget, served in (
        ("generate.budget", recipe.generate.budget, paid),
        ("evaluate.budget", tested, paid),
        ("rescue.budget", saved, again),
    ):
        if budget is not None and not (served and recipe.generate.prices):
            raise ValueError(f"'{key}' needs a served teacher and a price file ('generate.prices')")
    if recipe.generate.budget is None:
        return
    if again and saved is None:
        raise ValueError("'generate.budget' does not cover the rescue: say what that may cost in 'rescue.budget'")
    if recipe.evaluate and tested is None:
        raise ValueError("'generate.budget' does not cover the test set: say what that may cost in 'evaluate.budget'")


RULES: tuple[Callable[[Recipe], None], ...] = (
    selection_follows_checks,
    a_student_says_what_is_learnable,
    the_test_set_is_in_one_place,
    somebody_says_what_is_right,
    choices_have_no_text_of_their_own,
    choices_are_named_everywhere,
    probabilities_can_be_had,
    templates_are_read,
    controls_fit_the_task,
    somebody_scores,
    somebody_rewards,
    the_best_is_scored,
    rescue_asks_something_new,
    budgets_have_prices,
)
