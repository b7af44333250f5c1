"""Intervals: numbers derived by hand, known formulas, and coverage of a truth that is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from posttrain.evaluation.compare import (
    NEWCOMBE,
    NO_SPREAD,
    NO_VALUES,
    ONE_CLUSTER,
    T_CLUSTERED,
    WILSON,
    Estimate,
    Point,
    difference,
    estimate,
    wins,
)


def points(values: list[float | None], clusters: list[str] | None = None, weights: list[float] | None = None):
    clusters = clusters or [str(i) for i in range(len(values))]
    weights = weights or [1.0] * len(values)
    return [
        Point(f"i{i}", c, v, w) for i, (v, c, w) in enumerate(zip(values, clusters, weights, strict=True))
    ]


def test_one_item_a_cluster_is_the_textbook_t_interval():
    # values 1, 2, 3, 6: mean 3, sample variance (4 + 1 + 0 + 9) / 3 = 14/3, standard error sqrt(14/12)
    found = estimate(points([1.0, 2.0, 3.0, 6.0]))
    half = t.ppf(0.975, 3) * math.sqrt(14 / 12)
    assert found.method == T_CLUSTERED
    assert (found.mean, found.n, found.clusters) == (3.0, 4, 4)
    assert found.low == pytest.approx(3 - half)
    assert found.high == pytest.approx(3 + half)


def test_clusters_count_once():
    # clusters {0, 2} and {4, 6}: mean 3; deviations sum to -4 and 4; over n = 4 the shares are -1 and 1;
    # variance G/(G-1) (1 + 1) = 4, standard error 2
    found = estimate(points([0.0, 2.0, 4.0, 6.0], ["a", "a", "b", "b"]))
    assert found.clusters == 2
    assert found.high == pytest.approx(3 + 2 * t.ppf(0.975, 1))


def test_repeating_every_item_within_its_cluster_changes_nothing():
    once = estimate(points([0.2, 0.9, 0.4, 0.7, 0.1]))
    five = estimate(points([0.2, 0.9, 0.4, 0.7, 0.1] * 5, [str(i) for i in range(5)] * 5))
    assert five.n == 25
    assert (five.mean, five.low, five.high) == pytest.approx((once.mean, once.low, once.high))


def test_weights_give_the_ratio_and_its_error():
    # loss 1 over 1 token, 2 over 3 tokens: (1 + 6) / 4 = 1.75; shares 1 (1 - 1.75) / 4 = -3/16 and
    # 3 (2 - 1.75) / 4 = 3/16; variance 2 (2 (3/16)^2), standard error 3/8
    found = estimate(points([1.0, 2.0], weights=[1.0, 3.0]))
    assert found.mean == 1.75
    assert found.high == pytest.approx(1.75 + t.ppf(0.975, 1) * 3 / 8)


def test_the_third_state_is_counted_and_never_averaged():
    found = estimate(points([1.0, None, 0.0, None, 1.0]))
    assert found.mean == pytest.approx(2 / 3)
    assert (found.n, found.missing) == (3, 2)
    assert estimate(points([None, None])) == Estimate(None, None, None, 0, 0, 2, NO_VALUES)


def test_a_proportion_is_wilsons_with_t():
    n, k = 40, 30
    found = estimate(points([1.0] * k + [0.0] * (n - k)))
    q, p = t.ppf(0.975, n - 1), k / n
    # Wilson's limits are where (p - x)^2 = q^2 x (1 - x) / n
    for limit in (found.low, found.high):
        assert limit is not None
        assert (p - limit) ** 2 == pytest.approx(q * q * limit * (1 - limit) / n)
    assert found.method == WILSON


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_none_or_all_keeps_a_width(value: float):
    found = estimate(points([value] * 20))
    assert found.low is not None
    assert found.high is not None
    assert found.mean == value
    assert 0.1 < found.high - found.low < 0.25  # the rule of three gives 3/20
    assert found.low <= value <= found.high


def test_an_amount_is_no_proportion_though_all_of_it_is_zero():
    """The KL of a reference to itself is 0 on every answer: there is no spread, and no share of anything."""
    zeros, halves = points([0.0] * 20), points([0.0, 1.0] * 10)
    assert estimate(zeros, amount=True) == Estimate(0.0, None, None, 20, 20, 0, NO_SPREAD)
    assert estimate(halves, amount=True).method == T_CLUSTERED
    assert estimate(halves).method == WILSON
    assert difference(zeros, zeros, amount=True).method == NO_SPREAD
    assert difference(zeros, halves, amount=True).method == T_CLUSTERED


def test_all_right_in_few_clusters_says_less_than_in_many():
    few = estimate(points([1.0] * 20, [str(i % 4) for i in range(20)]))
    many = estimate(points([1.0] * 20))
    assert few.low is not None
    assert many.low is not None
    assert few.low < many.low


def test_what_cannot_be_said_is_not_said():
    assert estimate(points([0.3, 0.7], ["a", "a"])).method == ONE_CLUSTER
    assert estimate(points([0.3, 0.3, 0.3])).method == NO_SPREAD
    alone = estimate(points([1.0]))
    assert (alone.mean, alone.low, alone.high, alone.method) == (1.0, None, None, ONE_CLUSTER)
    assert not alone.beyond_zero


def test_a_paired_difference_sees_what_unpaired_intervals_hide():
    lot = random.Random(0)
    hard = [lot.gauss(0, 3) for _ in range(50)]
    before = points([h + lot.gauss(0, 0.1) for h in hard])
    after = points([h + 0.2 + lot.gauss(0, 0.1) for h in hard])
    a, b, change = estimate(before), estimate(after), difference(before, after)
    assert a.high is not None
    assert b.low is not None
    assert b.low < a.high  # the two intervals overlap widely
    assert change.beyond_zero
    assert change.mean == pytest.approx(0.2, abs=0.1)


def test_a_paired_difference_is_the_t_interval_of_the_differences():
    before, after = [1.0, 2.0, 4.0, 7.0], [2.0, 2.5, 6.0, 7.0]
    change = difference(points(before), points(after))
    plain = estimate(points([b - a for a, b in zip(before, after, strict=True)]))
    assert (change.mean, change.low, change.high) == pytest.approx((plain.mean, plain.low, plain.high))


def test_proportions_on_the_same_items_are_newcombes():
    # Newcombe 1998, table II, method 10 needs z for t; against his formula with q from t and the phi
    # coefficient of the fourfold table e, f, g, h = both, first only, second only, neither
    e, f, g, h = 20, 12, 2, 16
    n = e + f + g + h
    before = points([1.0] * (e + f) + [0.0] * (g + h))
    after = points([1.0] * e + [0.0] * f + [1.0] * g + [0.0] * h)
    found = difference(before, after)
    q = t.ppf(0.975, n - 1)

    def wilson(k: int) -> tuple[float, float]:
        centre, spread = 2 * k + q * q, q * math.sqrt(q * q + 4 * k * (1 - k / n))
        return (centre - spread) / (2 * (n + q * q)), (centre + spread) / (2 * (n + q * q))

    p1, p2 = (e + f) / n, (e + g) / n
    (l1, u1), (l2, u2) = wilson(e + f), wilson(e + g)
    phi = (e * h - f * g) / math.sqrt((e + f) * (g + h) * (e + g) * (f + h))
    low = p2 - p1 - math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    high = p2 - p1 + math.sqrt((u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2)
    assert found.method == NEWCOMBE
    assert (found.low, found.high) == pytest.approx((low, high))


def test_from_none_to_all_is_a_difference_with_a_width():
    found = difference(points([0.0] * 15), points([1.0] * 15))
    assert found.mean == 1.0
    assert found.low is not None
    assert 0.6 < found.low < 0.9
    assert found.beyond_zero


def test_a_model_against_itself_is_no_difference():
    same = points([1.0, 0.0, 1.0, 1.0, 0.0])
    found = difference(same, same)
    assert found.mean == 0
    assert not found.beyond_zero
    assert found.low is not None


def test_pairs_are_matched_by_item_and_half_pairs_are_missing():
    before = [Point("a", "a", 1.0), Point("b", "b", 2.0), Point("c", "c", None), Point("x", "x", 100.0)]
    after = [Point("b", "b", 3.0), Point("a", "a", 4.0), Point("c", "c", 5.0), Point("y", "y", -100.0)]
    found = difference(before, after)
    assert found.mean == 2.0  # (4 - 1 + 3 - 2) / 2
    assert (found.n, found.missing) == (2, 1)


def test_an_item_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="'a' stands twice"):
        difference([Point("a", "a", 1.0), Point("a", "b", 2.0)], [Point("a", "a", 1.0)])


def test_wins_count_ties_half_and_silence_not_at_all():
    before = points([1.0, 2.0, 3.0, None])
    after = points([2.0, 2.0, 1.0, 9.0])
    found = wins(before, after)
    assert found.mean == 0.5
    assert (found.n, found.missing) == (3, 1)
    assert wins(points([1.0, 1.0]), points([0.0, 0.0]), higher_is_better=False).mean == 1.0


def test_ties_leave_a_share_with_an_interval():
    found = wins(points([1.0] * 12), points([1.0] * 12))
    assert (found.mean, found.method) == (0.5, WILSON)
    assert found.low is not None
    assert found.low < 0.3
    mixed = estimate(points([0.5, 1.0, 0.0, 1.0] * 5))
    assert mixed.low is not None
    assert 0 <= mixed.low < mixed.mean < mixed.high <= 1


values = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(st.one_of(st.none(), values), st.integers(0, 6)), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_an_interval_holds_its_mean_and_order_does_not_matter(rows: list[tuple[float | None, int]]):
    made = points([v for v, _ in rows], [str(c) for _, c in rows])
    found, backwards = estimate(made), estimate(made[::-1])
    assert found.n + found.missing == len(rows)
    if found.low is not None:
        assert found.low <= found.mean <= found.high
        assert (backwards.low, backwards.high) == pytest.approx((found.low, found.high))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=2, max_size=60))
@settings(max_examples=150, deadline=None)
def test_differences_of_proportions_stay_in_bounds_and_turn_round(rows: list[tuple[bool, bool, int]]):
    clusters = [str(c) for *_, c in rows]
    a, b = points([float(x) for x, *_ in rows], clusters), points([float(y) for _, y, _ in rows], clusters)
    there, back = difference(a, b), difference(b, a)
    if there.low is not None:
        assert -1 <= there.low <= there.mean <= there.high <= 1
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def worlds(kind: str, truth: float, clusters: int, runs: int, seed: int):
    """Samples whose items share a cluster's luck, 1 to 5 items a cluster; the mean they are drawn around."""
    lot = np.random.default_rng(seed)
    for _ in range(runs):
        sizes = lot.integers(1, 6, clusters)
        names = np.repeat(np.arange(clusters), sizes)
        luck = np.sqrt(0.3) * lot.normal(size=clusters)[names]
        yield names, luck + np.sqrt(0.7) * lot.normal(size=len(names)), truth


@pytest.mark.parametrize(
    ("kind", "truth", "clusters"),
    [
        ("mean", 0.0, 15),
        ("mean", 0.0, 80),
        ("share", 0.5, 80),
        ("share", 0.9, 80),
        ("share", 0.9, 15),
        ("share", 0.98, 80),
    ],
)
def test_intervals_cover_the_truth(kind: str, truth: float, clusters: int):
    """The nominal share is 0.95; the bounds leave room for 400 runs and for few, uneven clusters."""
    hits = naive = 0
    for names, draws, mean in worlds(kind, truth, clusters, 400, 7):
        drawn = draws + mean if kind == "mean" else (draws < norm.ppf(truth)).astype(float)
        labels = [str(name) for name in names]
        found = estimate(points(drawn.tolist(), labels))
        assert found.low is not None
        hits += found.low <= truth <= found.high
        loose = estimate(points(drawn.tolist()))
        naive += loose.low is not None and loose.low <= truth <= loose.high
    assert 0.92 <= hits / 400 <= 0.985
    assert naive < hits  # without clusters the interval is too narrow


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.6), (0.9, 0.97), (0.03, 0.9), (0.5, 0.5)])
def test_paired_intervals_of_proportions_cover_the_truth(first: float, second: float):
    lot, hits, runs = np.random.default_rng(3), 0, 400
    for _ in range(runs):
        names = np.repeat(np.arange(40), lot.integers(1, 5, 40))
        luck = 0.6 * lot.normal(size=40)[names]
        labels = [str(name) for name in names]
        sides = [
            points((luck + 0.8 * lot.normal(size=len(names)) < norm.ppf(p)).astype(float).tolist(), labels)
            for p in (first, second)
        ]
        found = difference(*sides)
        assert found.low is not None
        hits += found.low <= second - first <= found.high
    assert 0.925 <= hits / runs <= 0.99
