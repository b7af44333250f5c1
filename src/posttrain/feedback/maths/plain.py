"""Numbers as people write them: exact values, with their units, percent signs and thousands separators."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_MULTIPLES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "k": 10**3,
}
_NAMES = {
    **{"dollar": "$", "usd": "$", "us$": "$", "euro": "€", "eur": "€", "gbp": "£", "inr": "₹", "yen": "¥"},
    **{
        "degree": "°",
        "hr": "hour",
        "h": "hour",
        "min": "minute",
        "sec": "second",
        "s": "second",
        "m": "meter",
    },
    **{"metre": "meter", "kilometre": "km", "kilometer": "km", "centimeter": "cm", "centimetre": "cm"},
    **{"kilogram": "kg", "gram": "g", "liter": "l", "litre": "l", "inch": "in", "inche": "in", "foot": "ft"},
    **{"feet": "ft", "mile": "mi", "pound": "lb", "ounce": "oz", "millimeter": "mm", "mm": "mm"},
}
# Short units; any other short letters beside a number are variables: 2x, 3ab.
_SHORT_UNITS = re.compile(
    r"°[cf]?|[msglh]|[kcmµ]?m|[kmµ]?g|[mckd]?l|ft|in|yd|mi|lb|oz|hrs?|min|sec|ms|mph|kmh|kph|[kmg]?hz|"
    r"[kmg]?w|[kmgt]b|mol|rad|deg|usd|eur|gbp|inr"
)
LONGEST = 1000  # characters of an answer that is compared
_SIGNS = r"[$€£¥₹]"
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)?(?:\.\d+)?"
_POWER = r"(?:[eE](?P<e>[+-]?\d+)|\s*(?:\\times|\\cdot|[x×*·])\s*10\s*\^\s*\{?(?P<ten>[+-]?\d+)\}?)?"
_LATEX = r"\\[dt]?frac\s*(?:\{\s*(?P<n>-?\d+)\s*\}\s*\{\s*(?P<d>\d+)\s*\}|(?P<n1>\d)\s*(?P<d1>\d))"
_NUMBER = re.compile(
    rf"""(?:(?:approximately|about|around|roughly|exactly|≈|\\approx)\s*)?
    (?P<before>(?:us)?{_SIGNS})?\s*(?P<sign>[-+−–])?\s*(?P<after>{_SIGNS})?\s*
    (?:(?P<whole>\d+)?\s*{_LATEX}
      |(?:(?P<mixed>\d+)[ ]+)?(?P<over>\d+)\s*[/⁄]\s*(?P<under>\d+)
      |(?P<decimal>{_DECIMAL}){_POWER})
    \s*(?P<percent>%|per\s?cent\b|pct\b|percentage\ points?\b)?
    \s*(?P<unit>\S.*)?""",
    re.IGNORECASE | re.VERBOSE,
)
_UNIT = re.compile(r"(?:[^\W\d_]|°)[^\s\d]*?(?:\^?\{?[-\d²³]*\}?)(?:\s+[^\W\d_][\w./²³^-]*){0,2}")
# A "unit" with one of these says something about the number instead.
_NO_UNIT = re.compile(
    r"\b(?:is|isn|are|not|nor|or|and|no|if|but|more|less|than|plus|minus|times|wrong|over|pi|sqrt|to|mod|until|"
    r"divided|squared|cubed|choose|factorial|false|true|incorrect)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """An exact value as written.

    percent: it has a percent sign, which `value` does not heed. places: digits after the point where it is a
    decimal, else None. digits: significant ones. unit: what stands beside it, in a common form; "" for none.
    """

    value: Fraction
    percent: bool = False
    places: int | None = None
    digits: int = 0
    unit: str = ""


def read_number(text: str) -> Number | None:
    """A text that is one number, with or without a unit; None for any other."""
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None or not any(match[name] for name in ("decimal", "under", "n", "n1")):
        return None
    value = _value(match)
    unit, multiple = _unit(
        match["unit"] or "", match.start("unit") > 0 and text[match.start("unit") - 1].isspace()
    )
    if value is None or unit is None:
        return None
    sign = -1 if (match["sign"] or "+") in "-−–" else 1
    currency = (match["before"] or match["after"] or "").lower()
    written = (match["decimal"] or "").partition(".")
    return Number(
        value=sign * value * multiple,
        percent=bool(match["percent"]),
        places=len(written[2]) if written[1] and multiple == 1 and not (match["e"] or match["ten"]) else None,
        digits=len(re.sub(r"\D", "", "".join(written)).lstrip("0")),
        unit=_NAMES.get(currency, currency) or unit,
    )


def same_number(a: Number, b: Number, digits: int) -> bool | None:
    """Whether two numbers are the same; None where they have different units.

    A decimal of at least `digits` significant digits is the same as what rounds to it at its last place. A
    percent sign that one alone has: 50% is 0.5, and is 50, since a question may ask for the percent; but what
    is below 1 was no percentage.
    """
    if a.unit and b.unit and a.unit != b.unit:
        return None
    if a.percent != b.percent:
        signed, bare = (a, b) if a.percent else (b, a)
        hundredth = Number(
            signed.value / 100, places=signed.places and signed.places + 2, digits=signed.digits
        )
        return _agree(hundredth, bare, digits) or (abs(bare.value) >= 1 and _agree(signed, bare, digits))
    return _agree(a, b, digits)


def _agree(a: Number, b: Number, digits: int) -> bool:
    return a.value == b.value or _rounds_to(a, b, digits) or _rounds_to(b, a, digits)


def _rounds_to(exact: Number, decimal: Number, digits: int) -> bool:
    if decimal.places is None or decimal.digits < digits:
        return False
    return abs(exact.value - decimal.value) * 2 * 10**decimal.places <= 1


def _value(match: re.Match[str]) -> Fraction | None:
    """The value without sign; None for a denominator of zero, or an exponent beyond reason."""
    under = match["under"] or match["d"] or match["d1"]
    if under is not None:
        if int(under) == 0:
            return None
        over = match["over"] or match["n"] or match["n1"]
        return int(match["mixed"] or match["whole"] or 0) + Fraction(int(over), int(under))
    exponent = int(match["e"] or match["ten"] or 0)
    if abs(exponent) > 400:
        return None
    return Fraction(re.sub(r"[,\s]", "", match["decimal"])) * Fraction(10) ** exponent


def _unit(text: str, apart: bool) -> tuple[str | None, int]:
    """A unit in its common form, and the multiple it brings ("million dollars"); None for what is no unit."""
    words = text.strip(" .").lower()
    first, _, rest = words.partition(" ")
    multiple = _MULTIPLES.get(first if first == "k" else first.removesuffix("s"), 1)
    if multiple > 1:
        words, apart = rest.strip(), True
    words = words.removeprefix("of ")
    if not words:
        return "", multiple
    if _NO_UNIT.search(words) or not _UNIT.fullmatch(words):
        return None, 1
    bare = re.sub(r"\W*[²³\d{}^-]*$", "", words.split()[0])
    if len(bare) <= (2 if apart else 3) and not _SHORT_UNITS.fullmatch(bare):
        return None, 1
    words = words.replace("²", "^2").replace("³", "^3").replace("^{2}", "^2").replace("^{3}", "^3")
    single = re.sub(r"(?<=\w\w)s\b", "", words)
    return _NAMES.get(single, single), multiple
