"""Whether a judge favours a place: what it says of pairs that it is shown both ways round."""

from __future__ import annotations

from collections import Counter
from typing import Any

from posttrain.feedback.judge import Preference

_PAIRS, _FLIPS, _AGREED, _FIRST = "orders: pairs", "orders: flips", "orders: agreed", "orders: first"


def flipped(orders: tuple[float, float]) -> bool:
    """Whether each order favours another response: both times whoever stands first, or whoever second."""
    return (orders[0] - 0.5) * (orders[1] - 0.5) < 0


def first_wins(orders: tuple[float, float]) -> float:
    """The share of the two orders in which what stands first is favoured; a tie counts half. Over pairs shown
    both ways round its mean is 1/2 for a judge to whom the place means nothing, however good it is.
    """
    return (_favoured(orders[0]) + _favoured(1 - orders[1])) / 2


def count_orders(preference: Preference, counts: Counter[str]) -> None:
    """Add what one pair says of the judge; nothing where it was asked in one order."""
    if preference.orders is None:
        return
    first, second = (_favoured(share) for share in preference.orders)
    counts[_PAIRS] += 1
    counts[_FLIPS] += flipped(preference.orders)
    counts[_AGREED] += first == second
    counts[_FIRST] += round(4 * first_wins(preference.orders))


def position_summary(counts: Counter[str]) -> dict[str, Any]:
    """pairs: shown both ways round and read. flip_rate: share of them in which the other order favoured the
    other response. agreed: share in which both orders said the same, ties included. first_wins: see above.
    """
    pairs = counts[_PAIRS]
    if not pairs:
        return {}
    return {
        "position": {
            "pairs": pairs,
            "flip_rate": counts[_FLIPS] / pairs,
            "agreed": counts[_AGREED] / pairs,
            "first_wins": counts[_FIRST] / (4 * pairs),
        }
    }


def _favoured(share: float) -> float:
    return 0.5 if share == 0.5 else float(share > 0.5)
