"""A judge made of judges: the weighted sum of their scores, each of them kept to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from pydantic import Field, model_validator

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.feedback.judge import Account, Judge, Verdict, models_of, spent_by
from posttrain.feedback.judge_use import JudgeField
from posttrain.feedback.verdicts import score_by, verdicts_of
from posttrain.records import Prompt, Response

# Training logs each part as reward_<part>; these it logs by itself.
_RESERVED = {"std", "chosen", "rejected", "margin", "desirable", "undesirable"}


class Summand(Config):
    """name: of the part in verdicts and metrics; by default the judge's. aspect: "overall", or a part of the
    judge's own verdict.
    """

    judge: JudgeField
    weight: float = 1.0
    name: str = ""
    aspect: str = "overall"

    @property
    def label(self) -> str:
        aspect = "" if self.aspect == "overall" else f".{self.aspect}"
        return self.name or f"{self.judge.name}{aspect}"


class WeightedSum(Config):
    """Σ weight · score over `parts`. Where one of them gives no answer, neither does the sum: a missing part
    is not a part of 0.
    """

    parts: tuple[Summand, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _told_apart(self) -> WeightedSum:
        names = [part.label for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two parts are called '{twice[0]}'; give each a name of its own")
        for name in names:
            if name in _RESERVED:
                raise ValueError(
                    f"a part cannot be called '{name}': reward_{name} is a metric of training itself; give "
                    "it another name"
                )
        return self

    def open(self) -> WeightedSumJudge:
        """Raises ConfigError for a part that cannot score."""
        return self.open_with(None)

    def open_with(self, account: Account | None) -> WeightedSumJudge:
        """As `open`; account: for parts that pay for their answers."""
        judges = []
        for part in self.parts:
            judge = part.judge.open(account)
            if not isinstance(judge, Judge):
                raise ConfigError(f"weighted_sum: '{part.judge.name}' compares and does not score")
            judges.append(judge)
        return WeightedSumJudge(self.parts, tuple(judges))


@final
@dataclass(frozen=True)
class WeightedSumJudge:
    parts: tuple[Summand, ...]
    judges: tuple[Judge, ...]

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`. The verdict's parts are the scores before weighting."""
        said = [
            verdicts_of(judge, items, f"weighted_sum: part '{part.label}'")
            for part, judge in zip(self.parts, self.judges, strict=True)
        ]
        return [self._sum(verdicts) for verdicts in zip(*said, strict=True)]

    def spent(self) -> dict[str, Any]:
        """See `Paid`: by part, those that pay."""
        told = {part.label: spent_by(judge) for part, judge in zip(self.parts, self.judges, strict=True)}
        return {label: spent for label, spent in told.items() if spent}

    @property
    def models(self) -> list[Any]:
        """Those of all parts; see `models_of`."""
        return [model for judge in self.judges for model in models_of(judge)]

    def _sum(self, verdicts: Sequence[Verdict]) -> Verdict:
        told = {
            part.label: score_by(verdict, part.aspect)
            for part, verdict in zip(self.parts, verdicts, strict=True)
        }
        scores = {name: verdict.score for name, verdict in told.items()}
        silent = [
            f"{name}: {verdict.reason or 'no answer'}"
            for name, verdict in told.items()
            if verdict.score is None
        ]
        if silent:
            return Verdict(None, "; ".join(silent), scores)
        total = sum(part.weight * (scores[part.label] or 0.0) for part in self.parts)
        return Verdict(total, "", scores)
