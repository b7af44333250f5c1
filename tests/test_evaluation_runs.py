"""The mean over several runs on the same prompts: against the analysis of variance, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from posttrain.evaluation.compare import NO_VALUES, WILSON, Point, estimate
from posttrain.evaluation.runs import CROSSED, across_runs


def table(values: np.ndarray) -> list[list[Point]]:
    """values: [runs, prompts]."""
    return [[Point(f"i{c}", f"c{c}", float(v)) for c, v in enumerate(run)] for run in values]


def test_a_balanced_table_is_the_anova_of_two_crossed_random_effects():
    lot = np.random.default_rng(1)
    values = lot.normal(size=(3, 12)) + lot.normal(size=12) + np.array([[0.0], [2.0], [-2.0]])
    s, g = values.shape
    grand, runs, prompts = values.mean(), values.mean(1), values.mean(0)
    of_runs = g * ((runs - grand) ** 2).sum() / (s - 1)
    of_prompts = s * ((prompts - grand) ** 2).sum() / (g - 1)
    rest = ((values - runs[:, None] - prompts + grand) ** 2).sum() / ((s - 1) * (g - 1))
    variance = (of_runs + of_prompts - rest) / (s * g)
    freedom = (of_runs + of_prompts - rest) ** 2 / (of_runs**2 / (s - 1) + of_prompts**2 / (g - 1))
    found = across_runs(table(values))
    assert found.mean == pytest.approx(grand)
    assert (found.n, found.clusters, found.method) == (36, 12, CROSSED)
    assert (found.high - found.low) / 2 == pytest.approx(t.ppf(0.975, freedom) * np.sqrt(variance))


def test_runs_that_agree_leave_the_prompts_luck():
    """Three copies of one run are that run: no more certain, however many there are."""
    values = np.random.default_rng(2).normal(size=40)
    one, three = across_runs(table(values[None])), across_runs(table(np.stack([values] * 3)))
    assert one == estimate(table(values[None])[0])
    assert (three.mean, three.low, three.high) == pytest.approx((one.mean, one.low, one.high))


def test_shares_stay_between_none_and_all():
    values = np.zeros((3, 30))
    values[0, :2] = values[1, 0] = 1
    found = across_runs(table(values))
    assert 0 < found.low < found.mean < found.high < 0.3
    assert across_runs(table(values), amount=True).low < 0
    nothing = across_runs(table(np.zeros((3, 30))))
    assert (nothing.mean, nothing.low, nothing.method) == (0.0, 0.0, WILSON)
    assert across_runs(table(np.zeros((3, 30))), amount=True).low is None


def test_the_third_state_is_counted_and_each_run_weighs_the_same():
    first = [Point("a", "a", 1.0), Point("b", "b", None), Point("c", "c", 3.0)]
    second = [Point("a", "a", 4.0), Point("b", "b", 4.0), Point("c", "c", 7.0)]
    found = across_runs([first, second])
    assert found.mean == pytest.approx((2 + 5) / 2)
    assert (found.n, found.clusters, found.missing) == (5, 3, 1)
    assert across_runs([first, [Point("a", "a", None)]]).method == NO_VALUES


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_intervals_cover_what_another_run_on_other_prompts_would_give(spread: float):
    """spread: standard deviation of runs; prompts 0.6, answers 0.8. All answers as one heap are too sure."""
    lot, hits, pooled, n = np.random.default_rng(5), 0, 0, 500
    for _ in range(n):
        values = (
            0.8 * lot.normal(size=(3, 100)) + 0.6 * lot.normal(size=100) + spread * lot.normal(size=(3, 1))
        )
        found = across_runs(table(values))
        hits += found.low <= 0 <= found.high
        naive = estimate([Point(str(i), str(i), float(v)) for i, v in enumerate(values.ravel())])
        pooled += naive.low <= 0 <= naive.high
    assert 0.925 <= hits / n <= 0.985
    assert pooled < hits
