"""The seam to whoever judges: prompts and responses in, verdicts out; "no answer" is a verdict of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    tie, None where it gave no answer. parts: the preference by each aspect alone. orders: where the judge was
    asked both ways round, the probability that the first is better as it stood first, and as it stood second.
    """

    probability: float | None
    reason: str = ""
    parts: Mapping[str, Preference] = field(default_factory=dict)
    orders: tuple[float, float] | None = None


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


@dataclass(frozen=True)
class Account:
    """keep: a folder for answers that were paid for. payer: whom their cost is booked to."""

    keep: Path
    payer: str


@runtime_checkable
class PaidConfig(Protocol):
    """A `JudgeConfig` whose judge pays for its answers, or is made of judges that may."""

    def open_with(self, account: Account) -> Judge | PairJudge:
        """As `open`, with a place to keep the answers, so that none is paid for twice."""
        ...


@runtime_checkable
class Paid(Protocol):
    """A judge that pays for its answers."""

    def spent(self) -> dict[str, Any]:
        """What they cost, for the step's summary; empty where nothing is paid after all."""
        ...


def spent_by(judge: Judge | PairJudge) -> dict[str, Any]:
    """What the judge's answers cost; empty for one that is not paid."""
    return judge.spent() if isinstance(judge, Paid) else {}


def models_of(judge: Judge | PairJudge) -> list[Any]:
    """The models a judge holds in memory: its `models` where it has several, else its `model`, if any."""
    several = getattr(judge, "models", None)
    if several is not None:
        return list(several)
    one = getattr(judge, "model", None)
    return [] if one is None else [one]
