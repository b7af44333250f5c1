"""Correlations as means over items, so that they get the same clustered and paired intervals as any metric.

A coefficient is written as a value an item whose mean is the coefficient and whose deviations from it are the
item's influence on it (Hampel 1974): the interval of that mean is the delta method's interval of the
coefficient, and differences of two models' values are differences of coefficients.
"""

from __future__ import annotations

import numpy as np


def pearson_values(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """[n] and [n] to [n] values with the mean Pearson's r; None where x or y has no spread.

    The influence is z_x z_y - r (z_x^2 + z_y^2) / 2 for standardised z.
    """
    a, b = x - x.mean(), y - y.mean()
    if not (a.any() and b.any()):
        return None
    a, b = a / np.sqrt(np.mean(a**2)), b / np.sqrt(np.mean(b**2))
    r = np.mean(a * b)
    return np.asarray(r + a * b - r * (a**2 + b**2) / 2)


def spearman_values(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """The same for Spearman's rho, ties at their middle rank. An item moves the coefficient by its own ranks
    and by what it does to the ranks of all others.
    """
    from scipy.stats import rankdata

    n = len(x)
    a, b = (rankdata(x) - 0.5) / n - 0.5, (rankdata(y) - 0.5) / n - 0.5
    var_a, var_b, cov = np.mean(a * a), np.mean(b * b), np.mean(a * b)
    if not (var_a > 0 and var_b > 0):
        return None
    of_cov = a * b - cov + (_above(x, b) - cov) + (_above(y, a) - cov)
    of_a, of_b = a * a - var_a + 2 * (_above(x, a) - var_a), b * b - var_b + 2 * (_above(y, b) - var_b)
    norm = np.sqrt(var_a * var_b)
    rho = cov / norm
    return np.asarray(rho + of_cov / norm - rho / 2 * (of_a / var_a + of_b / var_b))


def _above(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """For each item, the mean over all of the weight of those with a larger x; of equal ones, half."""
    _, place = np.unique(x, return_inverse=True)
    held = np.bincount(place, weight)
    beyond = held[::-1].cumsum()[::-1] - held / 2
    return np.asarray(beyond[place] / len(x))
