"""Numbers as people read them, and text that nobody vouches for made safe to show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_high

from posttrain.common.visible import seen

MAX_SHOWN = 2_000  # characters of one answer; the rest is counted, the file has it whole


@dataclass(frozen=True)
class Shown:
    """Text safe to put into a page once escaped. cut: how many characters were left out at its end."""

    text: str
    cut: int = 0


def visible(text: str, limit: int | None = MAX_SHOWN) -> Shown:
    """Untrusted text with every control, override and half character turned into something that can be seen.

    limit: characters kept, None for all. Newlines and tabs stay. Not yet HTML: the template escapes it.
    """
    kept = text if limit is None else text[:limit]
    return Shown(seen(kept), len(text) - len(kept))


@dataclass(frozen=True)
class Scale:
    """How one column of numbers is written: times `factor`, `digits` after the point, then the unit."""

    factor: float
    digits: int
    unit: str

    def number(self, value: float | None, signed: bool = False) -> str:
        """A number without its unit; "–" for None, a true minus sign, no negative zero."""
        if value is None:
            return "–"
        text = f"{value * self.factor:{'+' if signed else ''},.{self.digits}f}"
        if not text.strip("+-0.,"):
            text = text.replace("-", "+" if signed else "")
        return text.replace("-", "−")


def scale(values: list[float], widths: list[float], share: bool, unit: str = "") -> Scale:
    """The scale of a column: percent with one decimal for proportions, else what its middle interval allows.

    values: the means. widths: high - low of each interval.
    """
    if share:
        return Scale(100.0, 1, "%")
    halves = [w / 2 for w in widths if w > 0]
    largest = max((abs(v) for v in values), default=0.0)
    digits = (
        _decimals(median_high(halves))
        if halves
        else 2 - math.floor(math.log10(largest))
        if largest > 0
        else 0
    )
    return Scale(1.0, max(0, min(digits, 4)), unit)


def _decimals(half: float) -> int:
    """Decimals that show an error of `half`: one digit of it, two where it opens with 1 or 2."""
    power = math.floor(math.log10(half))
    return -power + (half / 10**power < 3)


def duration(seconds: float | None) -> str:
    """3.4 s, 2 min 05 s, 1 h 12 min."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit in ("B", "KiB") or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def amount(count: float | None) -> str:
    """A count: whole up to a million, then with a suffix."""
    if count is None:
        return "–"
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(count) >= limit:
            return f"{count / limit:.2f} {suffix}"
    return f"{count:,.0f}"


def several(count: float, noun: str) -> str:
    """ "1 item", "12 items"."""
    return f"{amount(count)} {noun}" + ("" if count == 1 else "s")
