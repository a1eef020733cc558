"""Checks that only look at the text. Pure functions of a check's values, a prompt and a sample; none of them raises."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from potstill.recipe import checks as ask
from potstill.records import Finding, Prompt, Sample
from potstill.verify.choice import chosen
from potstill.verify.fences import json_in, same_json
from potstill.verify.words import UNSPACED, count_tokens, count_words

_NUMBER = re.compile(  # 2010-2015 has no sign
    r"(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+)"
)
_MINUS = re.compile(r"[−﹣－]|(?<![\w)])[–‒](?=[\d.])")
_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_THINKING = re.compile(
    r"</?(?:seed:)?(?:think(?:ing)?|thought|reasoning)>|\[/?THINK\]|◁/?think▷|<\|(?:begin|end)_of_thought\|>",
    re.IGNORECASE,
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD_EDGE = rf"[^\W{UNSPACED}]"
_SHOWN = 200  # characters of evidence
_LOOP = 4  # turns of the same words that make a loop
_LOOP_TAIL = 2000  # characters at the end that are searched for one


def passed(evidence: object = "", score: float | None = None) -> Finding:
    return Finding(opinion="passed", evidence=shown(evidence), score=score)


def failed(reason: str, evidence: object = "", score: float | None = None) -> Finding:
    return Finding(opinion="failed", reason=reason, evidence=shown(evidence), score=score)


def undecided(reason: str, evidence: object = "") -> Finding:
    return Finding(opinion="undecided", reason=reason, evidence=shown(evidence))


def shown(evidence: object) -> str:
    text = str(evidence)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def extracted(pattern: str | None, text: str) -> str | None:
    """What is compared: the first group of the last match, the whole text without a pattern, None without a match."""
    if pattern is None:
        return text.strip()
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found = matches[-1]
    return str(found.group(1 if found.re.groups else 0) or "").strip()


def normalised(text: str) -> str:
    """NFKC, case folded, one blank between words, no closing punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!?;,: ")


def exact(check: ask.Exact, prompt: Prompt, sample: Sample) -> Finding:
    if prompt.reference is None:
        return undecided("no reference")
    return _same_as_one_of(check.extract, [prompt.reference], sample.text, check.normalise, "not the reference")


def one_of(check: ask.OneOf, _: Prompt, sample: Sample) -> Finding:
    return _same_as_one_of(check.extract, check.choices, sample.text, check.normalise, "not an allowed answer")


def _same_as_one_of(pattern: str | None, allowed: Sequence[str], text: str, normalise: bool, otherwise: str) -> Finding:
    answer = extracted(pattern, text)
    if answer is None:
        return failed("no answer found", text[-_SHOWN:])
    form = normalised if normalise else str.strip
    return passed(answer) if form(answer) in map(form, allowed) else failed(otherwise, answer)


def regex(check: ask.Regex, _: Prompt, sample: Sample) -> Finding:
    found = re.search(check.pattern, sample.text)
    if (found is None) == check.absent:
        return passed(found.group() if found else "")
    return failed("pattern present" if found else "pattern absent", found.group() if found else "")


def number(check: ask.Number, prompt: Prompt, sample: Sample) -> Finding:
    wanted = last_number(prompt.reference or "")
    if wanted is None:
        return undecided("the reference holds no number", prompt.reference)
    answer = extracted(check.extract, sample.text)
    found = None if answer is None else last_number(answer)
    if found is None:
        return failed("no number found", sample.text[-_SHOWN:])
    near = abs(found - wanted) <= max(check.absolute, check.relative * abs(wanted))
    return passed(found) if near else failed("wrong number", f"{found:g}, not {wanted:g}")


def last_number(text: str) -> float | None:
    found = numbers_in(text)
    return found[-1] if found and math.isfinite(found[-1]) else None


def numbers_in(text: str) -> list[float]:
    """With whichever sign stands for a minus, and with commas or narrow blanks between thousands."""
    plain = _THOUSANDS.sub("", _MINUS.sub("-", text))
    return [float(number.replace(",", "")) for number in _NUMBER.findall(plain)]


def json_value(check: ask.Json, prompt: Prompt, sample: Sample) -> Finding:
    value, wrong = json_in(sample.text, prose=check.prose)
    if wrong:
        return failed(wrong, sample.text[-_SHOWN:])
    if check.shape is not None:
        from jsonschema import Draft202012Validator  # the extra `checks`

        errors = sorted(Draft202012Validator(check.shape).iter_errors(value), key=lambda e: e.json_path)
        if errors:
            return failed("does not fit the schema", f"{errors[0].json_path}: {errors[0].message}")
    if not check.as_reference:
        return passed()
    wanted, unreadable = json_in(prompt.reference or "")
    if unreadable:
        return undecided("the reference is no JSON", prompt.reference)
    try:
        return passed() if same_json(value, wanted) else failed("not the reference's value", sample.text)
    except RecursionError:
        return undecided("nested too deep to compare", sample.text)


def grounded(check: ask.Grounded, prompt: Prompt, sample: Sample) -> Finding:
    value, wrong = json_in(sample.text)
    if wrong:
        return failed(wrong, sample.text[-_SHOWN:])
    if check.fields and isinstance(value, dict):
        value = {name: value.get(name) for name in check.fields}
    said = prompt.conversation
    text, numbers = normalised(said), set(numbers_in(said))
    for path, leaf in _leaves(value):
        if leaf is None:
            return failed("a value is missing", path)
        there = leaf in numbers if isinstance(leaf, int | float) else _occurs(normalised(leaf), text)
        if not there:
            return failed("a value is not in the prompt", f"{path} = {leaf!r}")
    return passed()


def _occurs(words: str, text: str) -> bool:
    """As whole words, where there are blanks between words: "art" is not in "Bart"."""
    before = "" if _UNSPACED.match(words[:1]) else f"(?<!{_WORD_EDGE})"
    after = "" if _UNSPACED.match(words[-1:]) else f"(?!{_WORD_EDGE})"
    return re.search(before + re.escape(words) + after, text) is not None


def _leaves(value: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    """Texts, numbers and nulls with their place; true and false claim nothing that could be looked up."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _leaves(inside, f"{path}.{name}")
    elif isinstance(value, list):
        for position, inside in enumerate(value):
            yield from _leaves(inside, f"{path}[{position}]")
    elif not isinstance(value, bool):
        yield path, value


def length(check: ask.Length, _: Prompt, sample: Sample) -> Finding:
    size = _size(check, sample.text)
    if size < check.least:
        return failed(f"fewer than {check.least} {check.unit}", f"{size} {check.unit}")
    if check.most is not None and size > check.most:
        return failed(f"more than {check.most} {check.unit}", f"{size} {check.unit}")
    return passed(f"{size} {check.unit}")


def _size(check: ask.Length, text: str) -> int:
    match check:
        case ask.Length(unit="characters"):
            return len(text)
        case ask.Length(tokenizer=str(name)):
            return count_tokens(text, name)
        case _:
            return count_words(text)


def multiple_choice(check: ask.MultipleChoice, prompt: Prompt, sample: Sample) -> Finding:
    wanted = chosen(prompt.reference or "", check.choices)
    if wanted is None:
        return undecided(f"the reference is none of {', '.join(check.choices)}", prompt.reference)
    answer = extracted(check.extract, sample.text)
    said = None if answer is None else chosen(answer, check.choices)
    if said is None:
        return failed("no choice found", sample.text[-_SHOWN:])
    return passed(said) if said == wanted else failed("another choice", f"{said}, not {wanted}")


def repetition(check: ask.Repetition, _: Prompt, sample: Sample) -> Finding:
    words = sample.text.casefold().split()
    grams = [tuple(words[i : i + check.words]) for i in range(len(words) - check.words + 1)]
    share = 1 - len(set(grams)) / len(grams) if grams else 0.0
    if share > check.share:
        return failed("repeats itself", f"{share:.0%} of the word {check.words}-grams")
    if loop := _loop(sample.text[-_LOOP_TAIL:]):
        return failed("ends in a loop", loop)
    return passed(f"{share:.0%}")


def _loop(tail: str) -> str:
    """What the text ends with at least four times in a row, at least 12 characters in all; "" where it does not.

    With the prefix function of the reversed text (Knuth, Morris and Pratt 1977), in linear time: whatever a hostile
    answer looks like, a regular expression's back-tracking is not at work here.
    """
    text = tail.rstrip()[::-1]
    border = [0] * len(text)
    for i in range(1, len(text)):
        k = border[i - 1]
        while k and text[i] != text[k]:
            k = border[k - 1]
        border[i] = k + (text[i] == text[k])
        size = i + 1
        period = size - border[i]
        if size >= max(12, _LOOP * period):
            return text[:period][::-1]
    return ""


def reasoning(_: ask.Reasoning, __: Prompt, sample: Sample) -> Finding:
    if not (sample.reasoning or "").strip():
        return failed("no reasoning")
    if sample.cut_off:
        return failed("did not come to its end")
    if not sample.text.strip():
        return failed("no answer after the reasoning")
    left = _THINKING.search(sample.text) or _THINKING.search(sample.reasoning or "")
    return failed("a thinking tag is left", left.group()) if left else passed()


def language(check: ask.Language, _: Prompt, sample: Sample) -> Finding:
    words = count_words(sample.text)
    if words < check.least_words:
        return passed(f"not judged: {words} words")
    import py3langid  # the extra `language`

    found = str(py3langid.classify(sample.text)[0])
    return passed(found) if found == check.language else failed("another language", found)
