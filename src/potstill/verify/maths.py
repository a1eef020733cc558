"""Whether two answers are mathematically equal, each read whole (`expressions`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from potstill.verify.expressions import Many, Quantity, Relation, Value, Words, name_of, read
from potstill.verify.formulae import choice_letter, cleaned
from potstill.verify.units import Unit, ratio

Same = bool | None
"""None: it cannot be told."""
_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # 1 2 is not 12
_INTERVALS = ("()", "[]", "(]", "[)")


def same(reference: str, answer: str) -> Same:
    """Whether the answer is equal to the reference; the same writing is, even where it cannot be read. Raises
    Unreadable."""
    left, right = cleaned(reference), cleaned(answer)
    if left and _BLANKS.sub("", left) == _BLANKS.sub("", right):
        return True
    letter, other = choice_letter(left, strict=True), choice_letter(right, strict=False)
    if letter and other:
        return letter == other
    return _equal(read(reference), read(answer))


def _equal(one: Value, two: Value) -> Same:  # noqa: C901
    match one, two:
        case ((Relation() | Many()), (Relation() | Many())) if (a := _assigned(one)) and (b := _assigned(two)):
            return _all(_equal(a[name], b[name]) for name in a) if a.keys() == b.keys() else False
        case Words(), Words():
            short = max(len(one.text.split()), len(two.text.split())) <= 4
            return True if one.text == two.text else False if short else None
        case Words(), _:
            return None
        case _, Words():
            return None
        case Relation(), Relation():
            return _relations(one, two)
        case Relation(), _:
            return _equal(side, two) if (side := _right_side(one)) else None
        case _, Relation():
            return _equal(one, side) if (side := _right_side(two)) else None
        case Quantity(), Quantity():
            return _quantities(one, two)
        case Many(), Many():
            return _several(one, two)
        case Many(), Quantity():
            return _several(one, Many("", (two,)))
        case _:
            return _several(Many("", (one,)), two)


def _right_side(relation: Relation) -> Value | None:
    """What a variable is said to be: the last of a = b = c."""
    if set(relation.signs) <= {"=", "in"} and name_of(relation.sides[0]):
        return relation.sides[-1]
    return None


def _assigned(value: Value) -> dict[str, Value] | None:
    """The values of several variables: x = 1, y = 2 or (x, y) = (1, 2)."""
    match value:
        case Many(brackets="", items=items) if all(isinstance(item, Relation) and _right_side(item) for item in items):
            sides = [item.sides for item in items if isinstance(item, Relation)]
        case Relation(signs=("=",), sides=(Many("()", names), Many("()", values))) if len(names) == len(values):
            sides = list(zip(names, values, strict=True))
        case _:
            return None
    found = {name_of(side[0]): side[-1] for side in sides}
    return found if len(found) == len(sides) and all(found) else None


def _relations(one: Relation, two: Relation) -> Same:
    left, right = _right_side(one), _right_side(two)
    if left and right and name_of(one.sides[0]) == name_of(two.sides[0]):
        return _equal(left, right)
    if left and right and (isinstance(left, Many) != isinstance(right, Many) or _equal(left, right) is False):
        return False
    return _by_difference(one, two)


def _by_difference(one: Relation, two: Relation) -> Same:
    """Two relations of one sign: their differences are the same but for a constant factor."""
    from sympy import simplify

    if len(one.signs) != 1 or len(two.signs) != 1:
        return None
    first, second = _difference(one), _difference(two)
    if first is None or second is None or first[0] != second[0]:
        return None if first is None or second is None else False
    sign, a, b = first[0], first[1], second[1]
    if a.free_symbols != b.free_symbols:
        return None if len(a.free_symbols) == len(b.free_symbols) and one.signs == two.signs else False
    factor = simplify(a / b)
    if not factor.is_number or factor.is_zero:
        return False
    return True if sign == "=" else bool(factor.is_positive)


def _difference(relation: Relation) -> tuple[str, Any] | None:
    """(sign, left - right), with < in place of >."""
    from sympy import Expr

    (sign,), sides = relation.signs, relation.sides
    if not all(isinstance(side, Quantity) and isinstance(side.value, Expr) for side in sides):
        return None
    left, right = (side.value for side in sides if isinstance(side, Quantity))
    return (sign.replace(">", "<"), right - left) if sign[0] == ">" else (sign, left - right)


def _several(one: Many, two: Many) -> Same:
    kinds = {one.brackets, two.brackets}
    if "cup" in kinds and kinds <= {"cup", *_INTERVALS}:
        return (len(kinds) == 1 and _any_order(one.items, two.items)) or _as_sets(one, two)
    if kinds <= {"", "{}"}:
        return _any_order(one.items, two.items)
    if "" in kinds and len(one.items) == len(two.items) > 1 and kinds != {"", "matrix"}:
        return None if _any_order(one.items, two.items) is not False else False  # (1, 2), or 1 and 2
    if "matrix" in kinds and len(kinds) > 1:
        return False if "" in kinds else None  # a vector may be written as either
    if one.brackets != two.brackets or len(one.items) != len(two.items):
        return None if "cup" in kinds else False
    return _all(_equal(a, b) for a, b in zip(one.items, two.items, strict=True))


def _as_sets(one: Many, two: Many) -> Same:
    """A union and an interval, or unions that are cut in other places."""
    try:
        return bool(_as_set(one) == _as_set(two))
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None


def _as_set(value: Value) -> Any:
    from sympy import FiniteSet, Interval, Union

    match value:
        case Many(brackets="cup"):
            return Union(*map(_as_set, value.items))
        case Many(brackets="{}"):
            return FiniteSet(*(item.value for item in value.items if isinstance(item, Quantity)))
        case Many(brackets=brackets, items=(Quantity(value=a), Quantity(value=b))):
            return Interval(a, b, brackets[0] == "(", brackets[1] == ")")
        case _:
            raise ValueError(value)


def _any_order(one: Sequence[Value], two: Sequence[Value]) -> Same:
    """As sets; values that only one side gives names to are compared in order."""
    if len(one) != len(two):
        return False if not any(isinstance(v, Words) for v in (*one, *two)) else None
    in_order = _all(_equal(a, b) for a, b in zip(one, two, strict=True))
    if in_order or len(one) == 1:
        return in_order
    found = _paired([[_equal(a, b) for b in two] for a in one])
    named = [sum(isinstance(v, Relation) for v in side) for side in (one, two)]
    return None if found and named[0] != named[1] else found


def _paired(same_as: Sequence[Sequence[Same]]) -> Same:
    """Whether every value of one side has a partner of its own on the other."""
    size = len(same_as)
    if any(not any(v is not False for v in row) for row in same_as):
        return False
    if size > 7:  # values that are equal to several are rare; their order is not searched
        return _all(any(row) or None for row in same_as)
    orders = [_all(same_as[i][j] for i, j in enumerate(order)) for order in permutations(range(size))]
    return True if True in orders else None if None in orders else False


def _all(opinions: Iterator[Same]) -> Same:
    found = list(opinions)
    return False if False in found else None if None in found else True


def _quantities(one: Quantity, two: Quantity) -> Same:
    if one.unit != two.unit and any(q.unit and q.unit.name.startswith("base") for q in (one, two)):
        return None if _values(one.value, two.value) or None in (one.unit, two.unit) else False
    if one.unit == two.unit or one.unit is None or two.unit is None:
        if (one.unit or two.unit) == Unit("percent") and one.unit != two.unit:
            share, other = (one, two) if one.unit else (two, one)
            return _values(share.value, other.value) or _values(share.value / 100, other.value)
        return _values(one.value, two.value)
    factor = ratio(one.unit, two.unit)
    if factor == 0:
        return False
    if factor is None:
        return None if _values(one.value, two.value) else False
    return _values(one.value * factor, two.value)


def _values(one: Any, two: Any) -> Same:
    """Two expressions, at points: what agrees with thirty digits at several agrees (Schwartz and Zippel)."""
    from sympy import Expr

    if one == two:
        return True
    if not isinstance(one, Expr) or not isinstance(two, Expr):
        return False if isinstance(one, Expr) != isinstance(two, Expr) else None
    names = sorted(one.free_symbols | two.free_symbols, key=str)
    opinions = [_at(one, two, dict(zip(names, point, strict=True))) for point in _points(len(names))]
    decided = [opinion for opinion in opinions if opinion is not None]
    if not decided or all(decided):
        return True if decided else None
    return None if _renamed(one, two) else False


def _renamed(one: Any, two: Any) -> bool:
    """Whether they may differ by the name of a constant or a whole number alone: k pi and n pi."""
    only = [sorted(map(str, a.free_symbols - b.free_symbols)) for a, b in ((one, two), (two, one))]
    free = {"k", "l", "m", "n", "t", "s", "c", "C", "K", "N"}
    return len(only[0]) == len(only[1]) > 0 and not one.is_Symbol and {*only[0], *only[1]} <= free


def _points(size: int) -> list[list[Any]]:
    """One where nothing is to be chosen, else three, with values of both signs, and none that is special."""
    from sympy import Rational

    if not size:
        return [[]]
    signs = ((1, 1), (1, -1), (-1, -1))
    return [
        [Rational((first, other)[i % 2] * (7 + 3 * i + 5 * k), 11 + 2 * k) for i in range(size)]
        for k, (first, other) in enumerate(signs)
    ]


def _at(one: Any, two: Any, point: dict[Any, Any]) -> Same:
    from sympy import Float, log

    a, b = (_complex(side.subs(point)) for side in (one, two))
    if a is None or b is None:
        return None if (a is None) == (b is None) and one != two else False
    gap, size = abs(a - b), max(abs(a), abs(b))
    if one.has(Float) or two.has(Float):
        return bool(gap <= 5e-7 and gap <= 1e-4 * size)  # 0.333333 is a third, 0.333 is not
    if not gap <= 1e-20 * max(1, size):
        return False
    if size < 1e9:
        return True
    digits = int(log(size, 10))  # of big numbers all count, up to the last
    return bool(abs((one - two).subs(point).evalf(20, maxn=digits + 60)) < 1e-6) if digits < 5000 else None


def _complex(value: Any) -> Any:
    """Its value with thirty digits, None where it has none."""
    found = value.evalf(30)
    return found if found.is_number and found.is_finite else None
