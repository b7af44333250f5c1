"""Whether probabilities are what they say: predicted against observed, in bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.evaluation.compare import Point, estimate


def bin_of(confidence: float, bins: int) -> int:
    """Which of the equal bins from 1/2 to 1."""
    return min(int((confidence - 0.5) * 2 * bins), bins - 1)


def error_shares(confidence: Sequence[float], right: Sequence[float], bins: int) -> np.ndarray:
    """[n] and [n] to [n] values whose mean is the expected calibration error, sum over bins of the share of
    items times |share that is right - mean confidence| (Guo et al., arXiv 1706.04599, equation 3).

    In a bin, |sum of (right - confidence)| is the sum of sign * (right - confidence), sign being the sum's.
    """
    gap = np.asarray(right, dtype=float) - np.asarray(confidence, dtype=float)
    place = np.array([bin_of(each, bins) for each in confidence], dtype=int)
    return np.asarray(np.sign(np.bincount(place, gap, minlength=bins))[place] * gap)


def curve(points: Sequence[tuple[float, Point]], bins: int) -> list[dict[str, Any]]:
    """For each bin that has any: the mean confidence, the share that is right with its interval, and n."""
    held: dict[int, list[tuple[float, Point]]] = {}
    for confidence, point in points:
        held.setdefault(bin_of(confidence, bins), []).append((confidence, point))
    made = []
    for _, some in sorted(held.items()):
        seen = estimate([point for _, point in some])
        said = sum(confidence for confidence, _ in some) / len(some)
        made.append(
            {"predicted": said, "observed": seen.mean, "low": seen.low, "high": seen.high, "n": seen.n}
        )
    return made
