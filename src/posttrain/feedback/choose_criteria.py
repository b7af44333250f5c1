"""How much a label of a prompt's answers would teach, by what a judge predicts of them.

Both go by the two answers that the judge thinks best and worst, which are those most likely to be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrain.common.errors import ConfigError
from posttrain.feedback.ensemble import DISAGREEMENT
from posttrain.feedback.judge import Verdict

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Found:
    """What is known of a prompt. why: it cannot be chosen, empty where it can. value: what its strategy goes
    by. place: [D], where it lies among the prompts.
    """

    key: str
    value: float | None = None
    why: str = ""
    place: np.ndarray | None = field(default=None, compare=False)

    @property
    def number(self) -> float:
        assert self.value is not None
        return self.value


Criterion = Callable[[Verdict, Verdict], float]


def measure(key: str, verdicts: Sequence[Verdict], criterion: Criterion) -> Found:
    """The criterion of the best against the worst answer, of those with a score; no score is made up."""
    scored = [v for v in verdicts if v.score is not None and math.isfinite(v.score)]
    if len(scored) < 2:
        reasons = [v.reason for v in verdicts if v.score is None and v.reason]
        return Found(key, None, reasons[0] if reasons else "fewer than two answers with a score")
    best = max(scored, key=lambda v: v.score or 0.0)
    worst = min(reversed(scored), key=lambda v: v.score or 0.0)
    return Found(key, criterion(best, worst))


def near_ties(best: Verdict, worst: Verdict) -> float:
    """The predicted margin: the smaller, the less sure is who wins (uncertainty sampling, Lewis and Gale
    1994, arXiv cmp-lg/9407020).
    """
    assert best.score is not None
    assert worst.score is not None
    return best.score - worst.score


def disagreement(best: Verdict, worst: Verdict) -> float:
    """The standard deviation over members k of P_k = sigmoid(r_k(best) - r_k(worst)), in [0, 0.5].

    Christiano et al. (arXiv 1706.03741), section 2.2.4, choose by the variance among the members; Gleave and
    Irving (arXiv 2203.07472) find it no better than chance where all are made from one language model.
    Raises ConfigError where the judge is no ensemble.
    """
    members = [
        1 / (1 + math.exp(min(worst_score - best_score, 700.0)))
        for best_score, worst_score in zip(_members(best.parts), _members(worst.parts), strict=True)
    ]
    mean = sum(members) / len(members)
    return math.sqrt(sum((p - mean) ** 2 for p in members) / len(members))


CRITERIA: dict[str, Criterion] = {"near_ties": near_ties, "disagreement": disagreement}


def _members(parts: Mapping[str, float | None]) -> list[float]:
    if DISAGREEMENT not in parts:
        raise ConfigError(
            "the strategy disagreement asks the members of an ensemble, and this judge's verdicts have none; "
            "use {name: reward_ensemble, models: […], normalise: false}"
        )
    return [score for name, score in parts.items() if name != DISAGREEMENT and score is not None]
