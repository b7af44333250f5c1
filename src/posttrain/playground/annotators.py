"""Simulated people: they see the oracle's score through noise of a chosen size, or say nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, model_validator

from posttrain.common.config import Config
from posttrain.feedback.judge import Preference, Verdict
from posttrain.playground.oracle import verdict
from posttrain.playground.world import rng_for
from posttrain.records import Prompt, Response, prompt_key, row_id


class Annotators(Config):
    """The judge `playground/annotators`.

    temperature: of Bradley and Terry's model, P(first is better) = sigmoid((s₁ - s₂) / temperature), with s
    the oracle's score. accuracy: instead of it, the share of pairs judged rightly, however close they are;
    equal scores are a coin toss. position_bias: added to the log-odds that the first is better, either way.
    annotators: how many judge each item; a preference is the share for the first, of those who answered.
    no_answer: share of judgements that are withheld.
    """

    version: ClassVar[int] = 1  # part of a step's key: raise it when judgements change

    seed: int = 0
    annotators: int = Field(1, ge=1)
    temperature: float | None = Field(None, gt=0)
    accuracy: float | None = Field(None, ge=0.5, le=1)
    position_bias: float = 0.0
    no_answer: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_model(self) -> Annotators:
        if (self.temperature is None) == (self.accuracy is None):
            raise ValueError("annotators err by temperature or by accuracy: set one of the two")
        return self

    def open(self) -> AnnotatorJudge:
        return AnnotatorJudge(self)


@dataclass(frozen=True)
class AnnotatorJudge:
    """Compares and scores; what an annotator says of an item depends on the seed and the item alone."""

    cfg: Annotators

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        return [self._preference(*item) for item in items]

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [self._verdict(*item) for item in items]

    def _preference(self, prompt: Prompt, first: Response, second: Response) -> Preference:
        scores = [verdict(prompt, response).score for response in (first, second)]
        if scores[0] is None or scores[1] is None:
            return Preference(None, "cut off")
        odds = self._log_odds(scores[0] - scores[1])
        votes = [rng.random() < _sigmoid(odds) for rng in self._present(prompt, first, second)]
        if not votes:
            return Preference(None, "no annotator answered")
        return Preference(sum(votes) / len(votes), f"{sum(votes)} of {len(votes)} for the first")

    def _verdict(self, prompt: Prompt, response: Response) -> Verdict:
        true = verdict(prompt, response)
        if true.score is None:
            return true
        seen = [self._seen(true.score, rng) for rng in self._present(prompt, response)]
        if not seen:
            return Verdict(None, "no annotator answered")
        return Verdict(sum(seen) / len(seen), f"mean of {len(seen)}")

    def _present(self, prompt: Prompt, *responses: Response) -> list[random.Random]:
        """The generators of the annotators who answer about this item."""
        item = row_id(prompt_key(prompt), [(response.text, response.finish) for response in responses])
        everyone = [rng_for(self.cfg.seed, "annotator", who, item) for who in range(self.cfg.annotators)]
        return [rng for rng in everyone if rng.random() >= self.cfg.no_answer]

    def _log_odds(self, gap: float) -> float:
        if self.cfg.temperature is not None:
            return gap / self.cfg.temperature + self.cfg.position_bias
        accuracy = min(self.cfg.accuracy or 0.0, 1 - 1e-12)
        sure = math.log(accuracy / (1 - accuracy)) if gap else 0.0
        return math.copysign(sure, gap) + self.cfg.position_bias

    def _seen(self, score: float, rng: random.Random) -> float:
        """One annotator's score.

        With a temperature, the oracle's plus Gumbel noise of that scale, whose differences give Bradley and
        Terry's model (Yellott 1977); with an accuracy, the oracle's, or 1 - score where the annotator errs.
        """
        if self.cfg.temperature is not None:
            return score - self.cfg.temperature * math.log(-math.log(max(rng.random(), 1e-300)))
        return score if rng.random() < (self.cfg.accuracy or 0.0) else 1 - score


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
