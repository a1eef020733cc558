"""Mathematics of an answer, read whole.

The outer form of an answer (words, lists, brackets, matrices, relations, units) is read here, its parts by the LaTeX
parser of math-verify, which reads a part to its end or not at all. What is not read whole is never compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from potstill.verify.formulae import cleaned, enclosed, listed, plain_words, related, united, united_sets
from potstill.verify.units import Unit


class Unreadable(Exception):
    """A text that is no mathematics, or not from its first to its last character."""


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words: a name, a day, "no solution"."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """One expression, with its unit if it has one."""

    value: Any
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Many:
    """Several values: "(]" and the like hold two in order, "()" any number in order, "{}" and "" (no brackets) in any
    order, "cup" are the parts of a union, "matrix" the rows of one."""

    brackets: str
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] signs[0] sides[1] ..."""

    signs: tuple[str, ...]
    sides: tuple[Value, ...]


Value = Words | Quantity | Many | Relation
_SET_OF = r"\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|\\vert|\||:)(.*)\\\}"  # { x | 1 < x < 2 }
_DOUBTFUL = re.compile(  # what the parser would read, and may read in another way than it is meant
    r"(?<![\\a-zA-Z{])[a-zA-Z]{4,}(?![a-zA-Z}])|"
    r"\\[a-z]*dots|\.\.\.|…|!!|\\gcd|(?<![_^\d])\d+\s+\d|"
    r"\d\s*\\[ ,;:]\s*\d|\d\.\d*\.|/\s*\d+\s*(?:[a-zA-Z(]|\\(?:sqrt|pi))"
)
_SPELT_OUT = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})", r"\\frac{\1\\pi}{180}"),
        (r"(?<=\d)[eE]([-+]?\d+)", r"\\cdot 10^{\1}"),
        (r"(?<![_^\d.])(\d[\d.]*)\s*(?=\()|(\))\s*(?=[\d(])", r"\1\2\\cdot "),  # 2(3) is no mixed number
    )
]


@lru_cache(maxsize=64)
def read(text: str) -> Value:
    """The whole of an answer. Raises Unreadable."""
    text = cleaned(text)
    if not text:
        raise Unreadable("nothing")
    words = plain_words(text)
    return _whole(text) if words is None else Words(words)


def is_number(value: Value) -> bool:
    return isinstance(value, Quantity) and not value.value.free_symbols


def _whole(text: str) -> Value:
    values = listed(text)
    if len(values) == 1:
        return _relation(text)
    items = tuple(item for one in values for item in _flat(_relation(one)))
    either = re.search(r"\bor\b", text) and all(isinstance(v, Many) and len(v.brackets) == 2 for v in items)
    return Many("cup" if either and re.search("[<>]|\\\\[lg]e", text) else "", items)


def _flat(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Many) and not value.brackets else (value,)


def _relation(text: str) -> Value:
    sides, signs = related(text)
    if not signs:
        return _union(text)
    found = Relation(signs, tuple(_union(side) for side in sides))
    return _as_interval(found) or found


def _union(text: str) -> Value:
    joined = united_sets(text)
    return Many("cup", tuple(_bracketed(one) for one in joined)) if len(joined) > 1 else _bracketed(text)


def _bracketed(text: str) -> Value:
    """Brackets around the whole text, or an expression."""
    if built := re.fullmatch(_SET_OF, text):
        return _whole(built[1])
    found = enclosed(text)
    if found is None:
        return _expression(text)
    brackets, rows = found
    if brackets == "matrix":
        return Many("matrix", tuple(Many("()", tuple(_expression(cell) for cell in row)) for row in rows))
    (items,) = rows
    if len(items) == 1 and brackets in ("()", "[]"):
        return _expression(text)
    return Many(brackets, tuple(one for item in items for one in _flat(_relation(item))))


def _expression(text: str) -> Value:
    text, unit = united(text.strip())
    signed = re.search(r"\\pm|\\mp", text)
    if signed:
        both = [_parsed(text.replace("\\pm", a).replace("\\mp", b)) for a, b in ("+-", "-+")]
        return Many("", tuple(Quantity(one, unit) for one in both))
    if text in ("\\mathbb{R}", "\\mathbb R", "\\R"):
        return Many("()", (Quantity(_parsed("-\\infty")), Quantity(_parsed("\\infty"))))
    return Quantity(_parsed(text), unit)


def _parsed(text: str) -> Any:
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
    from sympy import Basic, I, MatrixBase, Symbol

    tidy = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
    if _DOUBTFUL.search(text):
        raise Unreadable(text)
    for pattern, to in _SPELT_OUT:
        text = pattern.sub(to, text)
    try:
        found = latex2sympy(
            normalize_latex(text, tidy),
            is_real=None,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception as error:  # the parser raises plain exceptions
        raise Unreadable(text) from error
    if not isinstance(found, Basic | MatrixBase):
        raise Unreadable(text)
    return found.subs({s: I for s in found.free_symbols if isinstance(s, Symbol) and s.name == "i"})


def _as_interval(relation: Relation) -> Value | None:
    """a < x <= b and x > a as intervals: their variable has one name or another."""
    from sympy import oo

    low, high = {"<": "(", "<=": "["}, {"<": ")", "<=": "]"}
    match relation:
        case Relation(signs=(one, two), sides=(a, x, b)) if one in low and two in low and name_of(x):
            return Many(low[one] + high[two], (a, b))
        case Relation(signs=(one, two), sides=(b, x, a)) if {one, two} <= {">", ">="} and name_of(x):
            return Many(low[two.replace(">", "<")] + high[one.replace(">", "<")], (a, b))
        case Relation(signs=(sign,), sides=(a, b)) if sign in ("<", "<=", ">", ">=") and (name_of(a) or name_of(b)):
            edge, above = (b, sign[0] == ">") if name_of(a) else (a, sign[0] == "<")
            closed = "=" in sign
            if above:
                return Many(("[" if closed else "(") + ")", (edge, Quantity(oo)))
            return Many("(" + ("]" if closed else ")"), (Quantity(-oo), edge))
        case _:
            return None


def name_of(value: Value) -> str:
    """Of a lone variable, a function of one, or a tuple of variables; "" of everything else."""
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    match value:
        case Quantity(value=Symbol() | AppliedUndef(), unit=None):
            return str(value.value)
        case Many(brackets="()") if all(map(name_of, value.items)):
            return str(value.items)
        case Words():
            return value.text
        case _:
            return ""
