"""Tests that may be stopped at any time: what they promise, checked exactly and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.feedback.pivotal.betting import (
    against_at_least,
    against_at_most,
    apart,
    differences,
    inside,
    interval,
    rejected,
    tally,
)


def test_wealth_of_one_draw_by_hand():
    # stakes c in (0.5, 1.5, …, 19.5) / 20 against a mean of at most 1/2: 1 + c after a success, 1 - c after a
    # failure; over the grid c has mean 1/2
    assert math.exp(against_at_most({1: 1}, 0.5, 0)) == pytest.approx(1.5)
    assert math.exp(against_at_most({0: 1}, 0.5, 0)) == pytest.approx(0.5)
    # a difference of +1 against at most 0.2: 1 + c (1 - 0.2) / (0.2 + 1)
    assert math.exp(against_at_most({1: 1}, 0.2, -1)) == pytest.approx(1 + 0.5 * 0.8 / 1.2)
    assert against_at_least({-1: 3, 0: 2}, 0.1, 1) == pytest.approx(against_at_most({1: 3, 0: 2}, -0.1, -1))
    assert against_at_most({}, 0.3, 0) == 0


@pytest.mark.parametrize(("p", "q"), [(0.3, 0.5), (0.0, 0.2), (0.8, 1.0), (0.45, 0.6), (0.5, 0.5)])
def test_nobody_grows_rich_on_a_true_hypothesis(p: float, q: float):
    # the expected wealth after four pairs, over all 256 outcomes, where the difference is at most 0.2
    total = 0.0
    for outcomes in itertools.product([0, 1], repeat=8):
        before, after = outcomes[:4], outcomes[4:]
        chance = math.prod(p if x else 1 - p for x in before) * math.prod(q if x else 1 - q for x in after)
        wealth = against_at_most(differences([bool(x) for x in after], [bool(x) for x in before]), 0.2, -1)
        total += chance * math.exp(wealth)
    assert total <= 1 + 1e-9
    if q - p == pytest.approx(0.2):
        assert total == pytest.approx(1)  # at the edge the game is fair


def _looks(rng: np.random.Generator, p: float, q: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.random(n) < p, rng.random(n) < q


@pytest.mark.parametrize(("p", "q"), [(0.4, 0.6), (0.5, 0.31), (0.75, 0.95), (0.5, 0.5)])
def test_apart_errs_less_often_than_it_says(p: float, q: float):
    # looked at after every 8 pairs up to 256: the chance to be wrong at any look stays under 10 %
    rng = np.random.default_rng(0)
    truth = abs(q - p) >= 0.2 - 1e-9
    wrong = 0
    for _ in range(300):
        before, after = _looks(rng, p, q, 256)
        for n in range(8, 257, 8):
            said = apart(differences(after[:n].tolist(), before[:n].tolist()), 0.2, 0.1)
            if said is not None:
                wrong += said != truth
                break
    assert wrong / 300 <= 0.1


def test_a_fixed_sample_of_ten_errs_far_more_often():
    rng = np.random.default_rng(0)
    wrong = sum(
        abs(int(before.sum()) - int(after.sum())) >= 2
        for before, after in (_looks(rng, 0.5, 0.5, 10) for _ in range(2000))
    )
    assert wrong / 2000 == pytest.approx(1 - (184756 + 2 * 167960) / 2**20, abs=0.03)  # 0.503


def test_clear_cases_end_soon_and_the_others_do_not():
    assert apart({1: 16}, 0.2, 0.05) is True
    assert apart({-1: 16}, 0.2, 0.05) is True
    assert apart({0: 32}, 0.2, 0.05) is False  # all pairs alike: no change of 0.2
    assert apart({1: 4, -1: 4, 0: 8}, 0.2, 0.05) is None
    # ten rises bring a bet on rises 37 times its stake, and half of that where the other half is on falls
    assert apart({1: 10}, 0.2, 0.05) is None
    assert apart({1: 11}, 0.2, 0.05) is True
    assert apart({1: 3, 0: 13}, 0.2, 0.05) is None


def test_inside_the_band_or_not():
    assert inside(tally([True] * 30), 0.2, 0.8, 0.1) is False
    assert inside(tally([False] * 30), 0.2, 0.8, 0.1) is False
    assert inside(tally([True, False] * 20), 0.2, 0.8, 0.1) is True
    assert inside(tally([True, False]), 0.2, 0.8, 0.1) is None
    assert inside(tally([True] * 8), 0.0, 1.0, 0.1) is True  # no band at all


def test_intervals_hold_at_all_looks_at_once():
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        draws = rng.random(128) < 0.3
        bounds = [interval(tally(draws[:n].tolist()), 0, 1, 0.1) for n in (4, 8, 16, 32, 64, 128)]
        missed += any(not low <= 0.3 <= high for low, high in bounds)
    assert missed <= 10
    low, high = interval({1: 300, 0: 700}, 0, 1, 0.05)
    assert low < 0.3 < high
    assert high - low < 0.15
    assert interval({}, -1, 1, 0.05) == (-1, 1)
    assert interval({1: 20}, 0, 1, 0.05)[1] == pytest.approx(1)
    assert interval({-1: 40, 0: 10}, -1, 1, 0.05)[1] < -0.4


def test_each_end_of_an_interval_errs_in_half_of_the_cases_that_may():
    # the ends are where the wealth of betting against them comes to 2 / error
    for counts, low in (({1: 30, 0: 70}, 0), ({1: 30, 0: 50, -1: 20}, -1)):
        least, most = interval(counts, low, 1, 0.05)
        assert math.exp(against_at_most(counts, least, low)) == pytest.approx(2 / 0.05)
        assert math.exp(against_at_least(counts, most, 1)) == pytest.approx(2 / 0.05)


def test_e_bh_by_hand():
    # four hypotheses at 0.1: the k-th largest must reach 4 / (0.1 k) = 40, 20, 13.3, 10
    assert rejected([math.log(e) for e in (30, 25, 5, 1)], 0.1) == [True, True, False, False]
    assert rejected([math.log(e) for e in (30, 19, 5, 1)], 0.1) == [False] * 4
    assert rejected([math.log(e) for e in (1, 11, 12, 10.5)], 0.1) == [False] * 4
    assert rejected([math.log(e) for e in (10.5, 11, 12, 10.1)], 0.1) == [True] * 4
    assert rejected([], 0.1) == []
