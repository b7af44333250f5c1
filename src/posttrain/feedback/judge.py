"""The seam to whoever judges: prompts and responses in, verdicts out; "no answer" is a verdict of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from posttrain.records import Prompt, Response


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response.

    score: higher is better, in the judge's own units; None where the judge gave no answer. None is never
    replaced by a number. parts: the score per aspect, under the same rule.
    """

    score: float | None
    reason: str = ""
    parts: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """What a judge says of two responses.

    probability: in [0, 1], that the first is better; 1 or 0 where the judge only names a winner, 0.5 for a
    tie, None where it gave no answer.
    """

    probability: float | None
    reason: str = ""


@runtime_checkable
class Judge(Protocol):
    """Scores responses one by one."""

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """One verdict an item, in order."""
        ...


@runtime_checkable
class PairJudge(Protocol):
    """Compares two responses to the same prompt."""

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Preference]:
        """One preference an item, in order."""
        ...


class JudgeConfig(Protocol):
    """What is registered: a frozen `Config`, the fields of `{name: …, fields}`, that opens into a judge."""

    def open(self) -> Judge | PairJudge:
        """Load what the judge needs and return it ready to answer."""
        ...


def models_of(judge: Judge | PairJudge) -> list[Any]:
    """The models a judge holds in memory: its `models` where it has several, else its `model`, if any."""
    several = getattr(judge, "models", None)
    if several is not None:
        return list(several)
    one = getattr(judge, "model", None)
    return [] if one is None else [one]
