"""Units of quantities: which are the same, and how many of one are in another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_INCH = Fraction(254, 10000)
_KNOWN: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(scale))
    for dimension, names in {
        "length": {
            "mm": "1/1000 millimeter millimetre",
            "cm": "1/100 centimeter centimetre",
            "dm": "1/10 decimeter decimetre",
            "m": "1 meter metre",
            "km": "1000 kilometer kilometre",
            "in": f"{_INCH} inch inche",
            "ft": f"{12 * _INCH} foot feet",
            "yd": f"{36 * _INCH} yard",
            "mi": f"{63360 * _INCH} mile",
        },
        "time": {
            "s": "1 sec second",
            "min": "60 minute",
            "h": "3600 hr hour",
            "day": "86400",
            "week": "604800",
        },
        "mass": {"mg": "1/1000 milligram", "g": "1 gram", "kg": "1000 kilogram"},
        "volume": {"ml": "1/1000 milliliter millilitre", "l": "1 liter litre"},
        "money": {"dollar": "1", "cent": "1/100"},
        "angle": {"degree": "1 deg"},
        "share": {"percent": "1"},
        "speed": {"m/s": "18 meterspersecond", "km/h": "5 kmh kmph kilometersperhour", "mph": "8.04672 milesperhour"},
    }.items()
    for first, said in names.items()
    for scale, *others in [said.split()]
    for name in (first, *others)
}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's name in lower case, singular, without blanks; `power` 2 of square centimetres."""

    name: str
    power: int = 1


def unit_of(text: str) -> Unit:
    """The unit that `text` names: "cm^2", "square feet", "km / h", "apples"."""
    text = re.sub(r"\\(?:text|mathrm|mbox|textrm|textit|textbf|operatorname|rm)\b|[{}~\\]|\s+per\s+(?=\w)|\s", "", text)
    text = text.replace("²", "^2").replace("³", "^3").rstrip(".")
    power = 1
    if found := re.fullmatch(r"(.*)\^(\d)", text):
        text, power = found[1], int(found[2])
    for prefix, value in (("square", 2), ("sq.", 2), ("sq", 2), ("cubic", 3), ("cu", 3)):
        if text.lower().startswith(prefix) and len(text) > len(prefix):
            text, power = text[len(prefix) :], value
    name = text if text in _KNOWN else text.lower()
    if name not in _KNOWN and name.endswith("s"):
        name = name[:-1]
    return Unit(name, power)


def known(text: str) -> bool:
    return unit_of(text).name in _KNOWN


def ratio(one: Unit, two: Unit) -> Fraction | None:
    """How many of `two` are one of `one`; 0 where they measure different things, None where one is not known."""
    if one.name not in _KNOWN or two.name not in _KNOWN:
        return None
    (dimension, scale), (other, by) = _KNOWN[one.name], _KNOWN[two.name]
    return Fraction(0) if (dimension, one.power) != (other, two.power) else (scale / by) ** one.power
