"""Ratings on the scale of a reward: log-odds, as Bradley and Terry's model has them.

One picture for comparisons, scores and labels: a judge sees y = r + e, with logistic noise e. For a
comparison r is the difference of two rewards, and that is Bradley and Terry's model. y cut at thresholds is
McCullagh's proportional odds (1980, J. R. Stat. Soc. B 42, section 2), of which a good/bad label is the
case of two levels; y itself, up to a linear map, is a score. Where r has the share `reliability` of the
variance of y, the standard deviation of y, and so that of the scores, is sqrt((pi^2 / 3) / (1 - reliability))
log-odds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from posttrain.common.config import Config
from posttrain.common.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEVELS = 20


class Scale(Config):
    """How the scores of one aspect lie, as a rule among the training rows.

    mean, std: of the scores. levels: the different scores, ascending; thresholds: between each and the next,
    in log-odds. Both are empty where scores are regressed on.
    """

    mean: float
    std: float = Field(gt=0)
    levels: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_between_each(self) -> Scale:
        if self.levels and len(self.thresholds) != len(self.levels) - 1:
            raise ValueError(f"{len(self.levels)} levels need {len(self.levels) - 1} thresholds")
        if list(self.thresholds) != sorted(self.thresholds) or list(self.levels) != sorted(self.levels):
            raise ValueError("levels and thresholds ascend")
        return self

    def place(self, score: float) -> float | None:
        """A score as a column has it: its level's number, or in standard deviations from the mean; None for
        one between the levels.
        """
        if not self.levels:
            return (score - self.mean) / self.std
        return float(self.levels.index(score)) if score in self.levels else None


def scale_of(aspect: str, scores: Sequence[float], ordinal: bool, reliability: float) -> Scale:
    """The scale of the training rows' scores. Raises DataError where they say nothing, are too large or too
    small to reckon with, or are no levels.
    """
    counts = Counter(scores)
    if len(counts) < 2:
        raise DataError(
            f"ratings: all {len(scores)} scores of '{aspect}' are {scores[0]}, which teaches nothing; leave "
            "the aspect out of method.heads, or give more ratings"
        )
    mean, std = _mean_and_spread(scores)
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise DataError(
            f"ratings: the scores of '{aspect}', from {min(scores):g} to {max(scores):g}, have no mean and "
            "standard deviation as floating-point numbers; give them in other units"
        )
    if not ordinal:
        return Scale(mean=mean, std=std)
    if len(counts) > MOST_LEVELS:
        raise DataError(
            f"ratings: {len(counts)} different scores of '{aspect}' are no levels; set method.ratings to "
            "regression"
        )
    levels = sorted(counts)
    below = [sum(counts[level] for level in levels[: k + 1]) / len(scores) for k in range(len(levels) - 1)]
    thresholds = tuple(threshold(share, reliability) for share in below)
    return Scale(mean=mean, std=std, levels=tuple(levels), thresholds=thresholds)


def _mean_and_spread(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; differences are divided by the largest, whose square may be no number."""
    mean = sum(scores) / len(scores)
    apart = [abs(score - mean) for score in scores]
    most = max(apart)
    if not 0 < most < math.inf:
        return mean, most
    return mean, most * math.sqrt(sum((each / most) ** 2 for each in apart) / len(scores))


def threshold(below: float, reliability: float) -> float:
    """Where y is cut so that the share `below` of it lies lower: log-odds, widened by the rewards' own
    spread. A share of 0 or 1 says nothing: 0.
    """
    if not 0 < below < 1:
        return 0.0
    return math.log(below / (1 - below)) / math.sqrt(1 - reliability)


def log_odds_per_std(reliability: float) -> float:
    """The standard deviation of y, in log-odds."""
    return math.pi / math.sqrt(3 * (1 - reliability))


def squared_error(reward: Tensor, place: Tensor, reliability: float) -> Tensor:
    """(reward - score)^2 in the scores' standard deviations. reward: [n, members]; place: [n]."""
    return (reward / log_odds_per_std(reliability) - place[:, None]) ** 2


def ordinal_loss(reward: Tensor, place: Tensor, thresholds: Sequence[float]) -> Tensor:
    """-log P(level), with P(level <= k) = s(threshold_k - r). reward: [n, members]; place: [n], the numbers
    of levels.
    """
    from torch.nn.functional import logsigmoid

    ends = reward.new_tensor([-math.inf, *thresholds, math.inf])
    low, high = ends[place.long()][:, None], ends[place.long() + 1][:, None]
    # s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)), which loses no digits at the ends
    return -(logsigmoid(high - reward) + logsigmoid(reward - low) + (-(low - high).exp()).log1p())
