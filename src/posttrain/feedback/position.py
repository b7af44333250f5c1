"""Whether a judge favours a place: what it says of pairs that it is shown both ways round."""

from __future__ import annotations

from collections import Counter
from typing import Any

from posttrain.feedback.judge import Preference

_PAIRS, _FLIPS, _AGREED, _FIRST = "pairs", "flips", "agreed", "first"
_OPENS = "orders: "  # opens the names of all counts here
_MOST = 20  # parts of one sort that are told by name


def flipped(orders: tuple[float, float]) -> bool:
    """Whether each order favours another response: both times whoever stands first, or whoever second."""
    return (orders[0] - 0.5) * (orders[1] - 0.5) < 0


def first_wins(orders: tuple[float, float]) -> float:
    """The share of the two orders in which what stands first is favoured; a tie counts half. Over pairs shown
    both ways round its mean is 1/2 for a judge to whom the place means nothing, however good it is.
    """
    return (_favoured(orders[0]) + _favoured(1 - orders[1])) / 2


def count_orders(preference: Preference, counts: Counter[str], *parts: tuple[str, str]) -> None:
    """Add what one pair says of the judge; nothing where it was asked in one order.

    parts: (sort, name) of what it is counted for besides the whole, such as ("by_source", "a.jsonl").
    """
    if preference.orders is None:
        return
    first, second = (_favoured(share) for share in preference.orders)
    found = {
        _PAIRS: 1,
        _FLIPS: int(flipped(preference.orders)),
        _AGREED: int(first == second),
        _FIRST: round(4 * first_wins(preference.orders)),
    }
    for sort, name in (("", ""), *parts):
        counts.update({f"{_OPENS}{what}|{sort}|{name}": n for what, n in found.items()})


def position_summary(counts: Counter[str]) -> dict[str, Any]:
    """pairs: shown both ways round and read. flip_rate: share of them in which the other order favoured the
    other response. agreed: share in which both orders said the same, ties included. first_wins: see above.
    The same under `by_source` and the like, for each part, where there are several.
    """
    if not counts[f"{_OPENS}{_PAIRS}||"]:
        return {}
    told = _told(counts, "", "")
    parts: dict[str, dict[str, int]] = {}
    for key, n in counts.items():
        what, _, rest = key.removeprefix(_OPENS).partition("|")
        sort, _, name = rest.partition("|")
        if key.startswith(_OPENS) and what == _PAIRS and sort:
            parts.setdefault(sort, {})[name] = n
    for sort, names in parts.items():
        if len(names) > 1:
            most = sorted(names, key=lambda name: (-names[name], name))[:_MOST]
            told[sort] = {name or "not named": _told(counts, sort, name) for name in most}
    return {"position": told}


def _told(counts: Counter[str], sort: str, name: str) -> dict[str, Any]:
    n = {what: counts[f"{_OPENS}{what}|{sort}|{name}"] for what in (_PAIRS, _FLIPS, _AGREED, _FIRST)}
    return {
        "pairs": n[_PAIRS],
        "flip_rate": n[_FLIPS] / n[_PAIRS],
        "agreed": n[_AGREED] / n[_PAIRS],
        "first_wins": n[_FIRST] / (4 * n[_PAIRS]),
    }


def _favoured(share: float) -> float:
    return 0.5 if share == 0.5 else float(share > 0.5)
