"""One metric of several columns (variants of a recipe): each against a baseline, and which stands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from posttrain.evaluation.compare import LEVEL, NO_SPREAD, Estimate, Point, difference, estimate
from posttrain.evaluation.summary import verdict


@dataclass(frozen=True)
class Cell:
    """A column's value of one metric.

    value: over all its own items. against: less the baseline, on the items both have a value for, paired and
    clustered by prompt; None for the baseline itself, and where one of the two was not asked. verdict:
    "better", "worse", "same", or None where there is no interval or neither direction is better; where all
    clusters gave one and the same difference there is none, and that difference decides.
    best: better than every other column, each paired interval leaving out zero.
    """

    value: Estimate
    against: Estimate | None = None
    verdict: str | None = None
    best: bool = False


def contrast(
    columns: Mapping[str, Sequence[Point]],
    baseline: str,
    *,
    lower_is_better: bool = False,
    directed: bool = True,
    amount: bool = False,
    level: float = LEVEL,
) -> dict[str, Cell]:
    """A cell for each column that was asked. level: of the intervals of differences; amount: as in
    `compare.estimate`; directed: whether more or less of the metric is better at all.
    """
    best = _best(columns, lower_is_better, amount, level) if directed else None
    cells = {}
    for name, points in columns.items():
        found = None
        if name != baseline and baseline in columns:
            found = difference(columns[baseline], points, level, amount)
        said = _said(found, lower_is_better) if found is not None and directed else None
        cells[name] = Cell(estimate(points, amount), found, said, name == best)
    return cells


def _best(
    columns: Mapping[str, Sequence[Point]], lower_is_better: bool, amount: bool, level: float
) -> str | None:
    """The column that beats each of the others beyond doubt. A column without any value can be beaten by
    none: nothing is known of it.
    """
    means = {name: estimate(points, amount).mean for name, points in columns.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if len(columns) < 2 or len(known) < len(columns):
        return None
    first = (min if lower_is_better else max)(known, key=known.__getitem__)
    for other, points in columns.items():
        found = None if other == first else difference(points, columns[first], level, amount)
        if found is not None and _said(found, lower_is_better) != "better":
            return None
    return first


def _said(found: Estimate, lower_is_better: bool) -> str | None:
    """As `verdict`, but that a fall by the same amount everywhere is no fall that nobody can be sure of."""
    if found.method == NO_SPREAD:
        found = replace(found, low=found.mean, high=found.mean)
    return verdict(found, lower_is_better)
