"""The recipe: one YAML file that says which prompts, which teacher, which checks, which student, which method.

Strict, frozen, values only. `load` reads YAML 1.2 with `--set` overrides and refuses what it does not know, naming the
line and the nearest right key. `as_yaml` writes the resolved recipe back; loading that gives an equal one.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from potstill.errors import InputError
from potstill.values import Count, Name, Positive, Probability, Seed, Values

Kind = TypeVar("Kind", bound=BaseModel)
Control = Literal["base", "from_scratch", "hard_labels", "floor"]


class TextColumns(Values):
    """Which column of the source holds what. `text` becomes one user turn; `messages` is taken as it is."""

    text: str | None = None
    messages: str | None = None
    id: str | None = None

    @model_validator(mode="after")
    def _one_source_of_text(self) -> TextColumns:
        if (self.text is None) == (self.messages is None):
            raise ValueError("name exactly one of 'text' and 'messages'")
        return self


class Columns(TextColumns):
    """What people said of a prompt stands in columns too."""

    answer: str | None = Field(None, description="a person's answer, used to evaluate, never to train")
    grade: str | None = Field(None, description="a person's graded rating, used to evaluate")


class SplitSizes(Values):
    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


class Prompts(Values):
    """Where the prompts come from: a JSONL, CSV/TSV or Parquet file, or a folder saved by `datasets`."""

    source: str
    licence: str = Field(description="licence of the prompts, an SPDX id or a Hugging Face tag")
    columns: Columns
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    answer_by_grade: dict[str, tuple[float, float]] | None = Field(
        None, description="answer -> [lowest, highest] grade; rows outside every range are left out"
    )
    split: SplitSizes

    @model_validator(mode="after")
    def _people_answered(self) -> Prompts:
        if self.answer_by_grade and self.columns.grade is None:
            raise ValueError("'answer_by_grade' needs 'columns.grade'")
        if not self.answer_by_grade and self.columns.answer is None:
            raise ValueError("evaluation needs people's answers: name 'columns.answer' or 'answer_by_grade'")
        return self


class Shot(Values):
    """A worked example in the teacher's prompt."""

    prompt: str
    answer: str


class Teacher(Values):
    """The big frozen model. `template` (Jinja, the chat-template convention) replaces the one it carries."""

    model: str = Field(description="hub id, folder, .gguf file, or package:NAME/FILE inside an installed package")
    revision: str | None = None
    licence: str
    instructions: str | None = None
    examples: tuple[Shot, ...] = ()
    template: str | None = None
    batch_tokens: Count = 1024


class Answers(Values):
    """The allowed answers. `prior` is what the teacher's average answer is calibrated to."""

    choices: tuple[str, ...] = Field(min_length=2)
    prior: tuple[Positive, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Answers:
        if len(set(self.choices)) != len(self.choices) or not all(c.strip() == c != "" for c in self.choices):
            raise ValueError("'choices' must be distinct, not empty, without surrounding blanks")
        if self.prior is not None and len(self.prior) != len(self.choices):
            raise ValueError(f"'prior' has {len(self.prior)} values for {len(self.choices)} choices")
        if self.prior is not None and abs(sum(self.prior) - 1) > 1e-6:
            raise ValueError(f"'prior' sums to {sum(self.prior):g}, not to 1")
        return self


class Verify(Values):
    """A teacher answer is kept when its mass on the allowed answers and its calibrated confidence suffice."""

    min_allowed_mass: Probability = 0.0
    min_confidence: Probability = 0.0


class Student(Values):
    """The teacher's embeddings and its first `layers` layers, with a template of its own."""

    layers: Count
    freeze_embeddings: bool = Field(True, description="keep the teacher's embeddings, and its head where they are tied")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="keep that many first layers as the teacher's too"
    )
    template: str | None = None

    @model_validator(mode="after")
    def _something_learns(self) -> Student:
        if self.freeze_layers >= self.layers:
            raise ValueError(f"'freeze_layers' is {self.freeze_layers}: no layer of {self.layers} would learn")
        return self


class Sft(Values):
    """Cross-entropy on the teacher's answer (sequence-level KD; Kim and Rush 2016)."""

    kind: Literal["sft"]


Divergence = Literal[
    "forward_kl", "reverse_kl", "jeffreys", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation"
]


class LogitKd(Values):
    """T² D(teacher_T, student_T) + alpha x cross-entropy (Hinton et al. 2015): over the allowed answers, or over the
    vocabulary at every token of a whole answer. By default D is KL(teacher || student)."""

    kind: Literal["logit_kd"]
    divergence: Divergence = "forward_kl"
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="of jsd: GKD's 0 is 'forward_kl' and its 1 is 'reverse_kl'"
    )
    skew: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="of the skew KLs: the teacher's share in the mix"
    )
    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _nothing_unread(self) -> LogitKd:
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ValueError(f"'beta' belongs to the divergence 'jsd', not to '{self.divergence}'")
        if self.skew != 0.1 and not self.divergence.startswith("skew"):
            raise ValueError(f"'skew' belongs to the skew KLs, not to '{self.divergence}'")
        return self


Method = Annotated[Sft | LogitKd, Field(discriminator="kind")]


class Train(Values):
    """The loop, the same for every arm."""

    method: Method
    epochs: Count = 3
    batch_size: Count = 32
    learning_rate: Positive = 3e-4
    warmup: Probability = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="after the warm-up: a cosine to a tenth, or flat and in the last fifth down to nothing"
    )
    pass_tokens: Count = Field(
        8192, description="tokens in memory at once; a step that has more is accumulated over several passes"
    )
    average: Probability = Field(0.0, description="the model is the mean of its weights over this last share of steps")
    checkpoint_seconds: Positive = 20.0
    validations: Count = Field(4, description="how often the validation prompts are scored while training")


class EncoderShape(Values):
    """An encoder with random weights (ModernBERT's architecture), reading the teacher's tokens."""

    layers: Count = 2
    hidden: Count = 128
    heads: Count = 2
    dropout: Probability = 0.1

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> EncoderShape:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"'hidden' is {self.hidden}, which {self.heads} heads cannot share in even parts")
        return self


class Encoder(Values):
    """One more arm, `encoder`: a classifier with the choices as its labels, taught on the student's examples by the
    recipe's method. It starts from a model or from random weights."""

    start: str | None = Field(None, description="hub id or folder of an encoder; its own tokenizer is used")
    revision: str | None = None
    licence: str | None = Field(None, description="of what it starts from")
    shape: EncoderShape | None = None
    epochs: Count = 3
    batch_size: Count = 32
    learning_rate: Positive = 3e-4

    @model_validator(mode="after")
    def _one_beginning(self) -> Encoder:
        if (self.start is None) == (self.shape is None):
            raise ValueError("name exactly one of 'start' and 'shape'")
        if (self.start is None) != (self.licence is None):
            raise ValueError("'licence' is that of 'start': name both or none")
        return self


class Evaluate(Values):
    batch_tokens: Count = 1024
    resamples: Annotated[int, Field(ge=100)] = 2000
    uncached_prompts: Count = Field(48, description="prompts that time the teacher without its cached prefix")
    generate_prompts: Count = Field(100, description="test prompts that the saved model answers through generate")


class Recipe(Values):
    """A whole run."""

    name: Name
    seed: Seed = 0
    prompts: Prompts
    teacher: Teacher
    answers: Answers
    verify: Verify = Verify()
    student: Student
    train: Train
    controls: tuple[Control, ...] = get_args(Control)
    encoder: Encoder | None = None
    evaluate: Evaluate = Evaluate()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _answers_agree(self) -> Recipe:
        named = {shot.answer for shot in self.teacher.examples} | set(self.prompts.answer_by_grade or {})
        if strange := sorted(named - set(self.answers.choices)):
            raise ValueError(f"answer '{strange[0]}' is not one of answers.choices {list(self.answers.choices)}")
        return self


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe. Raises InputError (exit 2) with file, line, key, value and the way out."""
    return read(path, overrides, Recipe)


def has_section(path: Path, section: str) -> bool:
    """Whether the YAML file has that top-level key. Raises InputError where it is no YAML."""
    return section in _parse(path)


def read(path: Path, overrides: Iterable[str], kind: type[Kind]) -> Kind:
    """A YAML file as `kind` of recipe. Raises InputError."""
    tree = _parse(path)
    lines = _line_numbers(tree)
    values: dict[str, Any] = _plain(tree)
    for override in overrides:
        _apply(values, override, lines)
    try:
        return kind.model_validate_json(_json(values))
    except ValidationError as error:
        raise _explain(error, path, lines, kind) from None


def as_yaml(recipe: BaseModel) -> str:
    """The resolved recipe, every default spelt out."""
    yaml = YAML()
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def first_difference(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> str | None:
    """The dotted name of the first key whose values differ, or None."""
    for key in [*one, *(k for k in two if k not in one)]:
        left, right = one.get(key), two.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            if deeper := first_difference(left, right, f"{prefix}{key}."):  # pyright: ignore[reportUnknownArgumentType]
                return deeper
        elif left != right:
            return f"{prefix}{key}"
    return None


def _json(values: dict[str, Any]) -> str:
    # Strict JSON mode takes lists for tuples and refuses "3" for 3, which is what a YAML file needs.
    import json

    return json.dumps(values, default=str)


def _parse(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = (
            f"did you mean '{path.parent / near[0]}'?"
            if near
            else "give the path of a recipe such as recipes/quickstart.yaml"
        )
        raise InputError(f"there is no recipe at '{path}'", way_out=hint) from None
    except IsADirectoryError:
        raise InputError(f"'{path}' is a folder, not a recipe", way_out="give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text (byte {error.start})", way_out="save the recipe as UTF-8"
        ) from None
    try:
        tree = YAML().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "cannot be read").splitlines()[0]
        raise InputError(f"{path}, line {line}: not valid YAML: {problem}", way_out="mend that line") from None
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}", way_out="mend the file") from None
    if not isinstance(tree, CommentedMap):
        raise InputError(f"{path} holds no keys", way_out="start from recipes/quickstart.yaml")
    return tree


def _line_numbers(tree: object, prefix: str = "") -> dict[str, int]:
    """Dotted key -> line in the file, counted from 1."""
    lines: dict[str, int] = {}
    if isinstance(tree, CommentedMap):
        for key, value in tree.items():
            name = f"{prefix}{key}"
            lines[name] = tree.lc.data[key][0] + 1 if key in tree.lc.data else 1
            lines |= _line_numbers(value, f"{name}.")
    elif isinstance(tree, CommentedSeq):
        for position, value in enumerate(tree):
            lines |= _line_numbers(value, f"{prefix}{position}.")
    return lines


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(node, list):
        return [_plain(value) for value in node]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def _apply(values: dict[str, Any], override: str, lines: dict[str, int]) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(
            f"--set {override}: not of the form key.subkey=value",
            way_out="write for example --set train.epochs=2",
        )
    *parents, last = dotted.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: '{parent}' has no sub-keys", way_out="set the whole key instead")
        node = child  # pyright: ignore[reportUnknownVariableType]
    try:
        node[last] = _plain(YAML(typ="safe", pure=True).load(text))
    except YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML", way_out="quote it") from None
    for name in [name for name in lines if name == dotted or name.startswith(f"{dotted}.")]:
        del lines[name]


_MAY_HOLD_A_SECRET = ("url", "key_env", "key_file", "parameters")


def _explain(error: ValidationError, path: Path, lines: dict[str, int], kind: type[BaseModel]) -> InputError:
    """The first complaint of pydantic as one sentence with file, line, key and value."""
    first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    keys = _without_tags([str(part) for part in first["loc"]], kind)
    dotted = ".".join(keys)
    where = f"{path}, line {lines[dotted]}" if dotted in lines else str(path)
    match first["type"]:
        case "extra_forbidden":
            known = _fields_at(keys[:-1], kind)
            near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
            inside = f" in '{'.'.join(keys[:-1])}'" if keys[:-1] else ""
            hint = f"did you mean '{near[0]}'?" if near else f"known keys{inside}: {', '.join(known)}"
            return InputError(f"{where}: unknown key '{keys[-1]}'{inside}", way_out=hint)
        case "missing":
            above = ".".join(keys[:-1])
            line = f", line {lines[above]}" if above in lines else ""
            return InputError(f"{path}{line}: '{dotted}' is missing", way_out=f"add '{dotted}'")
        case "value_error":
            said = str(first.get("ctx", {}).get("error", first["msg"]))
            return InputError(f"{where}: {f'{dotted}: ' if dotted else ''}{said}", way_out="mend the recipe")
        case _:
            value = repr(first["input"])
            shown = value if len(value) <= 60 else value[:57] + "..."
            if any(key in _MAY_HOLD_A_SECRET for key in keys) or isinstance(first["input"], dict):
                shown = "not right (the value is not shown, it may hold a secret)"
            return InputError(
                f"{where}: '{dotted}' is {shown}",
                way_out=first["msg"].replace("Input should be", "it should be"),
            )


def _fields_at(keys: Iterable[str], kind: type[BaseModel]) -> list[str]:
    """The keys known under a dotted place; of a union, those of all its members."""
    models: list[type[BaseModel]] = [kind]
    for key in keys:
        models = _models_under(models, key)
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _without_tags(keys: Iterable[str], kind: type[BaseModel]) -> list[str]:
    """The dotted place as it stands in the file: pydantic puts in which member of a union it tried."""
    models: list[type[BaseModel]] = [kind]
    kept: list[str] = []
    for key in keys:
        tags = [get_args(m.model_fields["kind"].annotation) for m in models if "kind" in m.model_fields]
        if key.startswith("<") or any(key in tag for tag in tags):
            continue
        kept.append(key)
        models = _models_under(models, key)
    return kept


def _models_under(models: Iterable[type[BaseModel]], key: str) -> list[type[BaseModel]]:
    inside = [m.model_fields[key].annotation for m in models if key in m.model_fields]
    return [found for annotation in inside for found in _models_of(annotation)] if inside else list(models)


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _models_of(part)]
