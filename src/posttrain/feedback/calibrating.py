"""Soft labels that mean what they say: a judge's probabilities mapped to how often labels agree with it.

Isotonic regression (Zadrozny and Elkan 2002) of "the judge was right" on its confidence max(p, 1 - p), the
same for both sides, so that the place of a response still means nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.common.errors import DataError
from posttrain.feedback.judge import PairJudge, Preference
from posttrain.feedback.labelled import asked_of, by_aspect
from posttrain.records import Comparison, prompt_key

Numbers = NDArray[np.float64]
FEWEST = 20  # preferences that a map can be made of


@dataclass(frozen=True)
class Calibration:
    """confidence: [k] ascending, in (1/2, 1]. right: [k], the probability of each instead, not falling."""

    confidence: tuple[float, ...]
    right: tuple[float, ...]

    def of(self, preference: Preference) -> Preference:
        """The preference with its probability mapped; between two known confidences on a straight line. A tie
        stays one, and where the judge is no better than chance it becomes one.
        """
        p = preference.probability
        if p is None or p == 0.5:
            return preference
        sure = max(0.5, float(np.interp(max(p, 1 - p), self.confidence, self.right)))
        return replace(preference, probability=sure if p > 0.5 else 1 - sure)


def fit(confidence: Numbers, right: Numbers) -> Calibration:
    """confidence: [n], above 1/2. right: [n], 1 where the label agrees. Each level counts half a right and
    half a wrong answer more than it has, lest few answers make it certain.
    """
    from scipy.optimize import isotonic_regression

    levels, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    wins = np.bincount(place, right, minlength=len(levels))
    found = isotonic_regression((wins + 0.5) / (counts + 1), weights=counts + 1.0)
    return Calibration(tuple(levels.tolist()), tuple(found.x.tolist()))


def calibrations(
    judge: PairJudge, rows: Sequence[Comparison], aspects: Sequence[str], seed: int, name: str
) -> tuple[dict[str, Calibration], dict[str, Any]]:
    """For each aspect the map, and what the step's summary tells of it.

    An aspect goes by the rows that are labelled by it, else by those labelled "overall".
    Raises DataError where there are none, or the judge prefers a side in too few of them.
    """
    said = asked_of(judge, rows, seed, name)
    made: dict[str, Calibration] = {}
    told: dict[str, Any] = {}
    for aspect in aspects:
        named = aspect if any(row.aspect == aspect for row in rows) else "overall"
        mine = [i for i, row in enumerate(rows) if row.aspect == named]
        preferences = by_aspect([said[i] for i in mine], aspect)
        made[aspect], told[aspect] = _one(aspect, [rows[i] for i in mine], preferences)
    return made, told


def _one(
    aspect: str, rows: Sequence[Comparison], said: Sequence[Preference]
) -> tuple[Calibration, dict[str, Any]]:
    known = [(row, p) for row, each in zip(rows, said, strict=True) if (p := each.probability) is not None]
    sided = [(row, p) for row, p in known if p != 0.5]
    if len(sided) < FEWEST:
        raise DataError(
            f"calibrate: of {len(rows)} pairs labelled for '{aspect}' the judge prefers a side in "
            f"{len(sided)}; {FEWEST} are needed"
        )
    for_chosen = np.array([p for _, p in sided])
    sure, right = np.maximum(for_chosen, 1 - for_chosen), (for_chosen > 0.5).astype(float)
    side = np.array([_half(row) for row, _ in sided])
    return fit(sure, right), {
        "pairs": len(rows),
        "answered": len(known),
        "ties": len(known) - len(sided),
        "agreement": float(right.mean()),
        "confidence": float(sure.mean()),
        "brier": float(np.mean((sure - right) ** 2)),
        "brier_calibrated": _held_out(sure, right, side),
        "map": _map(sure, right),
    }


def _map(sure: Numbers, right: Numbers) -> list[dict[str, float]]:
    found = fit(sure, right)
    return [
        {"confidence": level, "probability": max(0.5, p), "pairs": int((sure == level).sum())}
        for level, p in zip(found.confidence, found.right, strict=True)
    ]


def _held_out(sure: Numbers, right: Numbers, side: NDArray[np.int64]) -> float | None:
    """The Brier score of each half of the prompts under the other's map; None where one half has none."""
    errors = []
    for half in (0, 1):
        here, there = side == half, side != half
        if not here.any() or not there.any():
            return None
        made = fit(sure[there], right[there])
        sides = np.maximum(0.5, np.interp(sure[here], made.confidence, made.right))
        errors.append((sides - right[here]) ** 2)
    return float(np.mean(np.concatenate(errors)))


def _half(row: Comparison) -> int:
    """Which half a row's prompt is in: all rows of a prompt stand on one side."""
    return hashlib.sha256(prompt_key(row.prompt).encode()).digest()[0] % 2
