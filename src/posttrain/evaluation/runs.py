"""The mean of several training runs (seeds) on the same items, with an interval that covers both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from posttrain.evaluation.compare import (
    LEVEL,
    NO_VALUES,
    ONE_CLUSTER,
    Estimate,
    Point,
    bounded,
    estimate,
    influences,
    quantile,
)

CROSSED = "t over clusters and runs"


def across_runs(runs: Sequence[Sequence[Point]], amount: bool = False) -> Estimate:
    """The mean over runs of each run's mean; of one run, its `estimate`.

    Prompts and runs are both drawn: a mean over the same prompts keeps their luck however many runs there
    are, and prompts say nothing of how a run with another seed would end. With m_s the mean of run s of S,
    u_cs what cluster c adds to its error, and G clusters, the variance is A + max(0, B - C):

        A = G/(G-1) Σ_c (Σ_s u_cs / S)²      of the prompts, the runs as they are
        B = Σ_s (m_s - m)² / (S (S-1))       of the runs as they came out
        C = (V - W) / S                      what of B the noise of the prompts alone would make,

    V and W the mean variance G/(G-1) Σ_c u_cs² of a run's mean and the mean covariance
    G/(G-1) Σ_c u_cs u_ct of two. In a balanced table this is (MS_prompts + MS_runs - MS_residual) / (cells),
    the error of a grand mean with two crossed random effects; degrees of freedom by Satterthwaite (1946) of
    A and max(B, C): runs that agree by luck are no more certain than their noise.
    Values that are all 0, 1/2 or 1 get an interval between 0 and 1 unless they are an `amount`.
    n: values in all runs. clusters: distinct prompts.
    """
    kept = [[p for p in run if p.value is not None and p.weight > 0] for run in runs]
    missing = sum(p.value is None for run in runs for p in run)
    if len(runs) == 1:
        return estimate(runs[0], amount)
    if not kept or not all(kept):
        return Estimate(None, None, None, sum(map(len, kept)), 0, missing, NO_VALUES)
    order = {name: i for i, name in enumerate(dict.fromkeys(p.cluster for run in kept for p in run))}
    found = [influences(run, order) for run in kept]
    means, shares = np.array([sums.mean for sums in found]), np.stack([sums.influence for sums in found])
    mean, n, g = float(means.mean()), sum(map(len, kept)), len(order)
    if g < 2:
        return Estimate(mean, None, None, n, g, missing, ONE_CLUSTER)
    variance, freedom = _error(means, shares)
    if variance <= (1e-12 * max(1.0, abs(mean))) ** 2:
        return replace(estimate([p for run in runs for p in run], amount), mean=mean)
    low, high = bounded(mean, variance, quantile(freedom, LEVEL), _share(kept) and not amount)
    return Estimate(mean, low, high, n, g, missing, CROSSED)


def _error(means: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """Variance of the mean over runs, and its degrees of freedom. means: [S]; shares: [S, G]."""
    s, g = shares.shape
    products = g / (g - 1) * shares @ shares.T  # [S, S] covariances of the runs' means
    own = float(np.trace(products)) / s
    between = (float(products.sum()) - s * own) / (s * (s - 1))
    prompts, runs, noise = float(products.sum()) / s**2, float(means.var(ddof=1)) / s, (own - between) / s
    variance = prompts + max(0.0, runs - noise)
    squares = prompts**2 / (g - 1) + max(runs, noise) ** 2 / (s - 1)
    return variance, float(np.clip(variance**2 / squares, 1.0, g - 1)) if squares else 1.0


def _share(runs: Sequence[Sequence[Point]]) -> bool:
    return all(p.value in (0.0, 0.5, 1.0) for run in runs for p in run)
