"""How often a model is right, from few samples: a Beta posterior, and the classes that thresholds make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.common.config import Config

Knowledge = Literal["usually", "sometimes", "rarely", "undecided"]
Positive = Annotated[float, Field(gt=0)]


class Thresholds(Config):
    """When a model knows the answer to a question, by the posterior of its accuracy on it.

    prior: a, b of the Beta distribution of the accuracy before anything was sampled; 1, 1 is uniform.
    usually, rarely: accuracies. The model usually knows where P(accuracy > usually) >= certainty, rarely
    where P(accuracy < rarely) >= certainty; sometimes where neither holds and it was both right and not.
    What is left is undecided: too few samples could be graded. No prior decides alone, without any.
    level: of the posterior's central interval.
    """

    prior: tuple[Positive, Positive] = (1.0, 1.0)
    usually: float = Field(0.5, gt=0, lt=1)
    rarely: float = Field(0.2, gt=0, lt=1)
    certainty: float = Field(0.9, gt=0.5, lt=1)
    level: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        if self.rarely > self.usually:
            raise ValueError(f"'rarely' ({self.rarely:g}) lies above 'usually' ({self.usually:g})")
        return self


@dataclass(frozen=True)
class Belief:
    """Beta(alpha, beta) of an accuracy. low, high: its central interval. above: P(accuracy > usually). below:
    P(accuracy < rarely).
    """

    alpha: float
    beta: float
    low: float
    high: float
    above: float
    below: float
    knowledge: Knowledge

    @property
    def mean(self) -> float:
        return self.alpha / (self.alpha + self.beta)


def believe(cfg: Thresholds, right: int, not_right: int) -> Belief:
    """The posterior after so many graded samples, of which those that were wrong or refused are not right."""
    from scipy.stats import beta

    a, b = cfg.prior[0] + right, cfg.prior[1] + not_right
    above, below = float(beta.sf(cfg.usually, a, b)), float(beta.cdf(cfg.rarely, a, b))
    low, high = (float(beta.ppf(q, a, b)) for q in ((1 - cfg.level) / 2, (1 + cfg.level) / 2))
    knowledge: Knowledge = "sometimes" if right and not_right else "undecided"
    if not right + not_right:
        knowledge = "undecided"
    elif above >= cfg.certainty:
        knowledge = "usually"
    elif below >= cfg.certainty:
        knowledge = "rarely"
    return Belief(a, b, low, high, above, below, knowledge)
