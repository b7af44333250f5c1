"""Means with intervals that know about clusters, and differences that know about pairs.

Means and differences: cluster-robust standard error with the G/(G-1) correction, Student's t with G-1 degrees
of freedom (Liang & Zeger 1986; for evaluations Miller 2024, arXiv:2411.00640). Proportions: Wilson's interval
at the effective sample size, n over the design effect (Wilson 1927; Franco, Little, Louis & Slud 2019), so
that 0 of n and n of n keep a width. Differences of proportions on the same items: Newcombe's square-and-add
of the two Wilson intervals with their correlation (1998, method 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95

T_CLUSTERED = "t over clusters"
WILSON = "Wilson at the effective sample size"
NEWCOMBE = "paired Wilson (Newcombe)"
NO_SPREAD = "no interval: every cluster gave the same value"
ONE_CLUSTER = "no interval: fewer than two clusters"
NO_VALUES = "no value"


@dataclass(frozen=True)
class Point:
    """One item's value of one metric; `value` None is the third state."""

    item: str
    cluster: str
    value: float | None
    weight: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, of 95 % where nothing else was asked for.

    mean: None where no item has a value. low, high: None where the data cannot say (see `method`).
    n: items with a value. clusters: distinct prompts among them. missing: items in the third state; for a
    difference, items where at least one of the two has no value. method: how the interval was made.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    missing: int
    method: str

    @property
    def beyond_zero(self) -> bool:
        """Whether the interval leaves out zero; False where there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sums:
    """A linearised mean Σ w·v / Σ w: `influence[c]` is cluster c's share of its error, they sum to zero."""

    mean: float
    influence: np.ndarray  # [clusters]

    @property
    def variance(self) -> float:
        """CR1 variance of the mean: G/(G-1) Σ_c influence²."""
        g = len(self.influence)
        return float(g / (g - 1) * np.sum(self.influence**2))


def estimate(points: Sequence[Point], amount: bool = False) -> Estimate:
    """The (weighted) mean of one metric with its interval, clusters taken as the independent draws.

    amount: the values are no proportion (nats, a margin), even where all of them happen to be 0 or 1.
    """
    seen = [p for p in points if p.value is not None and p.weight > 0]
    missing = sum(p.value is None for p in points)
    names = _codes([p.cluster for p in seen])
    g = 1 + max(names, default=-1)
    if not seen:
        return Estimate(None, None, None, 0, 0, missing, NO_VALUES)
    values, weights = _arrays(seen)
    sums = _linearise(values, weights, np.array(names), g)
    if g < 2:
        return Estimate(sums.mean, None, None, len(seen), g, missing, ONE_CLUSTER)
    if not amount and _is_proportion(values, weights):
        low, high = _wilson(sums, len(seen), g, LEVEL)
        return Estimate(sums.mean, low, high, len(seen), g, missing, WILSON)
    low_high, method = _student(sums.mean, sums.influence, LEVEL)
    return Estimate(sums.mean, *low_high, len(seen), g, missing, method)


def difference(
    before: Sequence[Point], after: Sequence[Point], level: float = LEVEL, amount: bool = False
) -> Estimate:
    """The mean of `after` minus that of `before`, over the items that both have a value for, paired.

    level: of the interval. amount: as in `estimate`. Raises ValueError where an item stands twice in one of
    the two.
    """
    pairs = _pair(before, after)
    both = [(a, b) for a, b in pairs if a.value is not None and b.value is not None]
    missing = len(pairs) - len(both)
    names = np.array(_codes([a.cluster for a, _ in both]), dtype=int)
    if not both:
        return Estimate(None, None, None, 0, 0, missing, NO_VALUES)
    g = int(names.max()) + 1
    first = _linearise(*_arrays([a for a, _ in both]), names, g)
    second = _linearise(*_arrays([b for _, b in both]), names, g)
    mean = second.mean - first.mean
    if g < 2:
        return Estimate(mean, None, None, len(both), g, missing, ONE_CLUSTER)
    if not amount and all(_is_proportion(*_arrays([pair[i] for pair in both])) for i in (0, 1)):
        low, high = _newcombe(first, second, len(both), g, level)
        return Estimate(mean, low, high, len(both), g, missing, NEWCOMBE)
    low_high, method = _student(mean, second.influence - first.influence, level)
    return Estimate(mean, *low_high, len(both), g, missing, method)


def wins(before: Sequence[Point], after: Sequence[Point], higher_is_better: bool = True) -> Estimate:
    """Share of the common items on which `after` beats `before`; equal values count one half.

    Items where one of the two has no value are missing, not ties.
    """
    return estimate(win_points(before, after, higher_is_better))


def win_points(before: Sequence[Point], after: Sequence[Point], higher_is_better: bool = True) -> list[Point]:
    """Of each common item 1 where `after` beats `before`, 0 where it loses, and 1/2 for a tie."""
    sign = 1 if higher_is_better else -1
    points = []
    for a, b in _pair(before, after):
        value = None
        if a.value is not None and b.value is not None:
            value = 0.5 + 0.5 * float(np.sign(sign * (b.value - a.value)))
        points.append(Point(a.item, a.cluster, value))
    return points


def influences(points: Sequence[Point], order: Mapping[str, int]) -> Sums:
    """The mean of points that all have a value, and its error by cluster. order: each cluster's place."""
    values, weights = _arrays(points)
    return _linearise(values, weights, np.array([order[p.cluster] for p in points]), len(order))


def _pair(before: Sequence[Point], after: Sequence[Point]) -> list[tuple[Point, Point]]:
    first, second = _by_item(before), _by_item(after)
    return [(first[item], second[item]) for item in first if item in second]


def _by_item(points: Sequence[Point]) -> Mapping[str, Point]:
    found: dict[str, Point] = {}
    for p in points:
        if p.item in found:
            raise ValueError(f"item '{p.item}' stands twice; differences are paired by item")
        found[p.item] = p
    return found


def _arrays(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p.value for p in points], dtype=float), np.array([p.weight for p in points], dtype=float)


def _codes(names: Sequence[str]) -> list[int]:
    """0, 1, … in order of first appearance."""
    order: dict[str, int] = {}
    return [order.setdefault(name, len(order)) for name in names]


def _linearise(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray, g: int) -> Sums:
    total = weights.sum()
    mean = float(weights @ values / total)
    return Sums(mean, np.bincount(clusters, weights * (values - mean) / total, minlength=g))


def _is_proportion(values: np.ndarray, weights: np.ndarray) -> bool:
    """Yes, no, and a tie that counts half; the spread of such values is never above that of yes and no."""
    return bool(np.isin(values, (0.0, 0.5, 1.0)).all() and (weights == weights[0]).all())


def quantile(df: float, level: float) -> float:
    """Student's t that leaves (1 - level) / 2 above it."""
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, df))


def _student(
    mean: float, influence: np.ndarray, level: float
) -> tuple[tuple[float | None, float | None], str]:
    g = len(influence)
    error = np.sqrt(Sums(mean, influence).variance)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return (None, None), NO_SPREAD
    half = quantile(g - 1, level) * float(error)
    return (mean - half, mean + half), T_CLUSTERED


def _wilson(sums: Sums, n: int, g: int, level: float) -> tuple[float, float]:
    """Wilson's limits at n / design effect; t in place of z, since the design effect is itself estimated."""
    p, effective = sums.mean, _effective_size(sums, n, g)
    return _wilson_at(p, effective, quantile(g - 1, level))


def bounded(mean: float, variance: float, q: float, proportion: bool) -> tuple[float, float]:
    """mean ± q standard errors; of a proportion, Wilson's limits at the size that has this variance.

    mean of a proportion: not 0 or 1, at which it has no variance.
    """
    if proportion and 0 < mean < 1:
        return _wilson_at(mean, mean * (1 - mean) / variance, q)
    half = q * float(np.sqrt(variance))
    return mean - half, mean + half


def _wilson_at(p: float, effective: float, q: float) -> tuple[float, float]:
    centre = (p + q * q / (2 * effective)) / (1 + q * q / effective)
    half = q / (1 + q * q / effective) * np.sqrt(p * (1 - p) / effective + q * q / (4 * effective**2))
    # at 0 and n of n the near limit is exactly p; rounding must not push it past
    return min(max(centre - float(half), 0.0), p), max(min(centre + float(half), 1.0), p)


def _effective_size(sums: Sums, n: int, g: int) -> float:
    """n over the design effect (variance over that of n independent items), never more than n.

    At 0 or n of n no design effect can be seen: the number of clusters stands in, as if items of one agreed.
    """
    p = sums.mean
    if p in (0.0, 1.0):
        return float(g)
    independent = p * (1 - p) / (n - 1)
    return n / max(1.0, sums.variance / independent)


def _newcombe(first: Sums, second: Sums, n: int, g: int, level: float) -> tuple[float, float]:
    """Square-and-add: each side's distance to its own Wilson limit, less twice their covariance."""
    (l1, u1), (l2, u2) = _wilson(first, n, g, level), _wilson(second, n, g, level)
    norm = np.sqrt(np.sum(first.influence**2) * np.sum(second.influence**2))
    phi = float(np.sum(first.influence * second.influence) / norm) if norm > 0 else 0.0

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)))

    mean = second.mean - first.mean
    low = mean - reach(second.mean - l2, u1 - first.mean)
    high = mean + reach(u2 - second.mean, first.mean - l1)
    return max(low, -1.0), min(high, 1.0)
