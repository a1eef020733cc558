"""The outer form of mathematics as people and models write it: its signs, its lists, its brackets, its units."""

from __future__ import annotations

import re
from collections.abc import Iterator

from potstill.verify.units import Unit, known, unit_of


def _figure(found: re.Match[str]) -> str:
    """An angle or a triangle by its name: ABC and CBA are one angle, any order of A, B and C is one triangle."""
    kind, points = found.groups()
    name = "".join(sorted(points)) if kind == "triangle" else min(points, points[::-1])
    return f"\\text{{{kind}{name}}}"


_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−﹣－", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u2060\ufeff\u200e", ""),
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "/",
        "π": "\\pi ",
        "∞": "\\infty ",
        "°": "^\\circ ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "∪": "\\cup ",
        "∈": "\\in ",
        "±": "\\pm ",
        "√": "\\sqrt ",
        "²": "^{2}",
        "³": "^{3}",
        "½": "\\frac{1}{2}",
        "∅": "\\emptyset ",
        "ℝ": "\\mathbb{R}",
        "％": "%",
    }
)
_TIDIED = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\\\\\[[\d.]+(?:pt|em|ex|mm)\]", r"\\\\"),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\(?:displaystyle|textstyle|limits|!)", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"(?<=\d)(?:\{,\}|\\[,; ]|~)(?=\d{3}(?!\d))", ""),
        (r"(?<!\d)([1-9]\d{0,2}) (?=\d{3}(?: \d{3})*(?:\.\d+)?\s*$)", r"\1"),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\\(?:mathrm|text|operatorname)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\(leqslant|leqq|leq|le)(?![a-zA-Z])", r"\\le "),
        (r"\\(geqslant|geqq|geq|ge)(?![a-zA-Z])", r"\\ge "),
        (r"\\(?:neq|ne)(?![a-zA-Z])", r"\\ne "),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset "),
        (r"\*\*(?=[\d({a-z-])(?<=[\w)}]\*\*)", "^"),
        (r"(?<=[\w)}]) *\* *(?=[\w({\\])", r" \\cdot "),
        (r"(?<![\\a-zA-Z])(sqrt|pi|infty|sin|cos|tan|cot|ln|log|exp)(?![a-zA-Z])", r"\\\1"),
        (r"(\\(?:sin|cos|tan|cot|sec|csc|ln))\s*([a-zA-Z]|\\[a-z]+)\s*(?=\()", r"\1(\2) "),
        (r"\^\s*(-\s*\w|\d{2,})", r"^{\1}"),
        (r"C_\{?(\d+)\}?\^\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        (r"(?<![\w}.^_])(\d+)\s*\\frac\s*(\{\d+\}\s*\{\d+\}|\d\s*\d)", r"(\1+\\frac\2)"),
        (r"(?<=[a-zA-Z])'", "_{prime}"),
        (r"\\(angle|triangle|odot)\s*([A-Z]+)", _figure),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\circ\s*C(?![a-zA-Z])|\\circ\s*\\text\{\s*C\s*\}", r"\\circ "),
        (r"\s+", " "),
    )
]
_WHOLE_NUMBERS = re.compile(  # ", k \\in \\mathbb{Z}" says what k is, and no more
    r"(?:,\s*(?:\\text\s*\{[^{}]*\})?|\(|\\text\s*\{ *where *\})\s*[kmn]\s*\\in"
    r"\s*\\math(?:bb|bf|rm) *\{?[ZN]\}?[^,]*$"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*\{(\d+)\}")
_TEXT = r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mbox|operatorname|rm)"
_ONLY_TEXT = re.compile(_TEXT + r"\s*\{([^{}]*)\}")
_SHORT_WORDS = frozenset(
    {"yes", "no", "odd", "all", "one", "two", "six", "ten", "none", "even", "true", "east", "west"}
)
_NOT_WORDS = re.compile(r"\b(?:sqrt|sin|cos|tan|cot|sec|csc|log|exp|infinity|frac|percent|degrees?)\b", re.IGNORECASE)
_SEPARATOR = re.compile(rf",?\s*{_TEXT}\s*\{{\s*(?:and|or)\s*\}}|,?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[,;]")
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv)(?![a-zA-Z])|[<>]|(?<![!:])=")
_RELATION_SIGNS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "~", "\\equiv": "mod"}
_OPEN = re.compile(r"\\(?:\{|langle|lfloor|lceil|begin\{\w+\*?\})|[(\[{]")
_CLOSE = re.compile(r"\\(?:\}|rangle|rfloor|rceil|end\{\w+\*?\})|[)\]}]")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|\s]*\})?(.*)\\end\{\1\}", re.DOTALL)
_UNIT = re.compile(
    rf"(?P<value>.*[\d)}}\]!]|.*\\pi|.*[a-z](?=\s*{_TEXT}))\s*(?P<unit>"
    rf"(?:{_TEXT}\s*\{{[^{{}}]*[a-zA-Z][^{{}}]*\}}\s*/?\s*)+(?:\^\s*\{{?\d\}}?)?"
    r"|(?<=\s)[a-zA-Z][a-zA-Z. ]*[a-zA-Z]?(?:/[a-z]+)?(?:\^\{?\d\}?)?|[a-zA-Z]{2,}(?:/[a-z]+)?(?:\^\{?\d\}?)?)\.?",
    re.DOTALL,
)
_PERCENT = re.compile(rf"(.*[\d)}}])\s*(?:\\?%|{_TEXT}\s*\{{\s*(?:percent|per cent|\\?%)\s*\}}|percent)", re.DOTALL)
_DEGREES = re.compile(r"(?!.*\\(?:sin|cos|tan|cot|sec|csc))(.*[\d)}])\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})", re.DOTALL)
_MONEY = re.compile(rf"(-?)\s*(?:\\\$|[€£¥]|(?:{_TEXT}\s*\{{\s*)?Rs\.?\s*\}}?)\s*(.*\d.*)", re.DOTALL)


def cleaned(text: str) -> str:
    """One way of writing signs, blanks and brackets; nothing that has a meaning is lost."""
    text = text.translate(_SIGNS).strip().strip("*").strip()
    if text.startswith("$") and text.count("$") - text.count("\\$") == 1:
        text = "\\" + text  # a price
    text = re.sub(r"(?<!\\)\$", " ", text)
    for pattern, to in _TIDIED:
        text = pattern.sub(to, text)
    text = _REPEATING.sub(_repeating, _WHOLE_NUMBERS.sub("", text)).strip()
    text = re.sub(r"^(?:\\approx|[=:])\s*|(?:\\[, ]|[\s.,;:])+$", "", text)
    while text.startswith("{") and _end(text) == len(text):
        text = text[1:-1].strip()
    found = _ONLY_TEXT.fullmatch(text)
    if found and (re.match(r"\s*[-+]?[\d.]", found[1]) or not re.search("[a-zA-Z]{2}", found[1])):
        text = found[1].strip()  # mathematics that was set as text
    return text


def _repeating(found: re.Match[str]) -> str:
    """0.1\\overline{6} as a fraction."""
    whole, once, again = found[1] or "0", found[2], found[3]
    below = (10 ** len(again) - 1) * 10 ** len(once)
    return f"\\frac{{{int(whole + once + again) - int(whole + once)}}}{{{below}}}"


def plain_words(text: str) -> str | None:
    """The text in one form where it is words and no mathematics."""
    found = _ONLY_TEXT.fullmatch(text)
    said = found[1] if found else text
    if not re.match(r"\s*[^\W\d_]", said) or re.search(r"[\\=<>^_{}+*/|]", said):
        return None
    runs = re.findall(r"[^\W\d_]+", _NOT_WORDS.sub("", said))
    if not found and not any(len(run) >= 4 or run.casefold() in _SHORT_WORDS for run in runs):
        return None
    form = " ".join(re.sub(r"[^\w\s]", " ", said).casefold().split())
    return form.removeprefix("the ") if runs else None


def choice_letter(text: str, *, strict: bool) -> str:
    """The letter of a multiple choice: alone, or (where not `strict`) before what it stands for."""
    text = re.sub(_TEXT + r"\s*\{([^{}]*)\}", r"\1", text).strip()
    found = re.fullmatch(r"\(([A-J])\)\s*.*|([A-J])(?:[.):]\s*.*)?", text, re.DOTALL)
    if strict and len(text) > 3:
        return ""
    return (found[1] or found[2]) if found else ""


def _scan(text: str) -> Iterator[tuple[int, int]]:
    """Every place of the text with the number of brackets that are open there; a bracket's own place counts as within.
    Places inside a command or a bracket of several characters are left out."""
    depth = at = 0
    while at < len(text):
        opened, closed = _OPEN.match(text, at), _CLOSE.match(text, at)
        depth += opened is not None
        yield at, depth
        depth -= closed is not None
        token = opened or closed or re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL).match(text, at)
        at = token.end() if token else at + 1


def _end(text: str) -> int:
    """Where the bracket that the text begins with is closed; 0 where it is not."""
    for at, depth in _scan(text):
        if at and depth == 1 and (closed := _CLOSE.match(text, at)):
            return closed.end()
        if depth == 0:
            return 0
    return 0


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts between separators outside all brackets, and the separators."""
    pieces, signs, start = [], [], 0
    for at, depth in _scan(text):
        found = separator.match(text, at) if at >= start and not depth else None
        if found and not (text[at] == "," and _thousands(text, at)):
            pieces.append(text[start:at].strip())
            signs.append(found.group().strip())
            start = found.end()
    return [*pieces, text[start:].strip()], signs


def _thousands(text: str, at: int) -> bool:
    before = re.search(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})*$", text[:at])
    return before is not None and re.match(r"\d{3}(?!\d)", text[at + 1 :]) is not None


def listed(text: str, *, within: bool = False) -> list[str]:
    """The values of a list without its brackets. `within` brackets a comma is never one of thousands."""
    return _split(re.sub(",", ", ", text) if within else text, _SEPARATOR)[0]


def united_sets(text: str) -> list[str]:
    return _split(text, _UNION)[0]


def related(text: str) -> tuple[list[str], tuple[str, ...]]:
    """The sides of a relation and its signs: = < <= > >= != in ~ mod."""
    sides, signs = _split(text, _RELATION)
    return sides, tuple(_RELATION_SIGNS.get(sign, sign) for sign in signs)


def enclosed(text: str) -> tuple[str, list[list[str]]] | None:
    """("()", [values]) of a text in brackets, ("matrix", rows) of a matrix, None of anything else."""
    if found := re.fullmatch(r"\](.*,.*)\[", text):
        return "()", [listed(found[1], within=True)]
    matrix = _MATRIX.fullmatch(text)
    if matrix and "\\begin" not in matrix[2]:
        rows = [row for row in matrix[2].split("\\\\") if row.strip()]
        return "matrix", [[cell.strip() for cell in row.split("&")] for row in rows]
    opened = _OPEN.match(text)
    if opened is None or opened.group() == "{" or _end(text) != len(text):
        return None
    closing = next(c for c in ("\\rangle", "\\}", ")", "]", "") if text.endswith(c))
    inside = text[opened.end() : len(text) - len(closing)].strip()
    if _MATRIX.fullmatch(inside):
        return enclosed(inside)
    kind = {"\\{": "{", "\\langle": "(", "(": "(", "[": "["}.get(opened.group(), "")
    brackets = kind + {"\\}": "}", "\\rangle": ")"}.get(closing, closing)
    return (brackets, [listed(inside, within=True)]) if brackets in ("()", "[]", "(]", "[)", "{}") else None


def united(text: str) -> tuple[str, Unit | None]:
    """A quantity without its unit, and the unit."""
    for form, unit in ((_PERCENT, Unit("percent")), (_DEGREES, Unit("degree"))):
        if found := form.fullmatch(text):
            return found[1], unit
    if found := _MONEY.fullmatch(text):
        value, unit = united(found[2])
        return found[1] + value, unit or Unit("dollar")
    if found := re.fullmatch(r"([0-9A-F]+)_\{?(\d{1,2})\}?", text):
        if int(found[2]) >= 2 and all(int(c, 16) < int(found[2]) for c in found[1]):
            return str(int(found[1], int(found[2]))), Unit(f"base {found[2]}")
        return text, None
    found = _UNIT.fullmatch(text)
    if found is None:
        return text, None
    name, value = found["unit"], found["value"]
    spaced = value + name != text
    plain = not name.startswith("\\")
    if plain and not (known(name) and (spaced or len(name) > 1)) and not (spaced and re.search("[a-zA-Z]{4}", name)):
        return text, None
    return value.strip(), unit_of(name)
