"""Tests and intervals that may be looked at after every rollout and stopped when they are clear.

Waudby-Smith & Ramdas 2024 (arXiv:2010.16161), section 4: whoever bets against "the mean is at most m" at
fair odds has, while that is true, an expected wealth of at most 1 at any time, so wealth 1 / error is reached
with probability at most `error`, however often one looks (Ville's inequality). The bets here are fixed shares
of the wealth, and the wealth is the mean over a grid of them: it depends on how often each value came alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Shares of the wealth that are staked: small ones win against small effects, large ones soon against large.
_STAKES = (np.arange(20) + 0.5) / 20
_STEPS = 40  # halvings of an interval's end: 2 / 2^40

Counts = Mapping[int, int]  # value -> how often it came


def against_at_most(counts: Counts, mean: float, low: int) -> float:
    """Log-wealth of betting against "the mean of independent draws, none below `low`, is at most `mean`".

    E[exp(log-wealth)] <= 1 at any stopping time while that is so.
    """
    if mean <= low:
        return math.inf if any(n and value > low for value, n in counts.items()) else 0.0
    wealth = np.zeros(len(_STAKES))
    for value, n in counts.items():
        wealth += n * np.log1p(_STAKES * (value - mean) / (mean - low))
    top = float(wealth.max())
    return top + math.log(float(np.exp(wealth - top).mean()))


def against_at_least(counts: Counts, mean: float, high: int) -> float:
    """As `against_at_most`, for draws none above `high` whose mean is at least `mean`."""
    return against_at_most({-value: n for value, n in counts.items()}, -mean, -high)


def interval(counts: Counts, low: int, high: int, error: float) -> tuple[float, float]:
    """Bounds of the mean of draws in [low, high], all looks at once right with probability 1 - error."""
    enough = math.log(2 / error)

    def least(counts: Counts, low: float, high: float, bound: int) -> float:
        """The least mean that the wealth does not refute; it falls as the mean rises."""
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if against_at_most(counts, middle, bound) >= enough:
                low = middle
            else:
                high = middle
        return low

    mirrored = {-value: n for value, n in counts.items()}
    return least(counts, low, high, low), -least(mirrored, -high, -low, -high)


def tally(outcomes: Sequence[bool]) -> Counts:
    """How often 1 and 0 came."""
    won = sum(outcomes)
    return {1: won, 0: len(outcomes) - won}


def differences(after: Sequence[bool], before: Sequence[bool]) -> Counts:
    """The i-th outcome of one arm less the i-th of the other, as far as both go: independent draws of mean
    p(after) - p(before) where neither arm's outcome had a say in whether the next one was drawn.
    """
    return Counter(int(a) - int(b) for a, b in zip(after, before, strict=False))


def inside(counts: Counts, low: float, high: float, error: float) -> bool | None:
    """Whether a probability lies in [low, high]: True or False once that is clear, else None.

    True is wrong with probability at most `error`; so is False by each end of the band, both of which err
    only where the band is so narrow that either may.
    """
    enough = math.log(1 / error)
    if (low > 0 and against_at_least(counts, low, 1) >= enough) or (
        high < 1 and against_at_most(counts, high, 0) >= enough
    ):
        return False
    above = low <= 0 or against_at_most(counts, low, 0) >= enough
    below = high >= 1 or against_at_least(counts, high, 1) >= enough
    return True if above and below else None


def apart(counts: Counts, gap: float, error: float) -> bool | None:
    """Whether two probabilities differ by `gap` or more, from `differences`; None while that is not clear.

    Each answer is wrong with probability at most `error`: "less than gap" is refuted by the mean of the
    wealths of betting on either sign, "gap or more" only where both signs are.
    """
    enough = math.log(1 / error)
    rises, falls = against_at_most(counts, gap, -1), against_at_least(counts, -gap, 1)
    if float(np.logaddexp(rises, falls)) - math.log(2) >= enough:
        return True
    if min(against_at_least(counts, gap, 1), against_at_most(counts, -gap, -1)) >= enough:
        return False
    return None


def rejected(log_wealths: Sequence[float], error: float) -> list[bool]:
    """Which hypotheses may be rejected together, with an expected share of false ones among them of at most
    `error`, however they depend on each other: e-BH (Wang & Ramdas 2022, arXiv:2009.02824, section 3).
    """
    order = sorted(range(len(log_wealths)), key=lambda i: -log_wealths[i])
    most = 0
    for k, i in enumerate(order, 1):
        if log_wealths[i] >= math.log(len(order) / (k * error)):
            most = k
    chosen = set(order[:most])
    return [i in chosen for i in range(len(log_wealths))]
