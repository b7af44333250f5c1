"""Asking a judge: one verdict an item or an error that says so, and only finite scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain.common.errors import PosttrainError
from posttrain.feedback.judge import Judge, Verdict
from posttrain.records import Prompt, Response

NOT_FINITE = "not a finite number"


def verdicts_of(judge: Judge, items: Sequence[tuple[Prompt, Response]], name: str) -> list[Verdict]:
    """What the judge says of each item. name: whose, as an error calls it (`judge 'exact_match'`).

    Raises PosttrainError where there are not as many verdicts as items.
    """
    said = judge.score(items)
    check_count(len(said), len(items), name)
    return [finite(verdict) for verdict in said]


def check_count(said: int, asked: int, name: str) -> None:
    """Raises PosttrainError unless every question got its answer: else none is known to be of which."""
    if said != asked:
        raise PosttrainError(f"{name} gave {said} answers to {asked} questions; mend the judge")


def finite(verdict: Verdict) -> Verdict:
    """The verdict with None, no answer, in place of each number that is not finite."""
    parts = {name: _finite(value) for name, value in verdict.parts.items()}
    if verdict.score is None or math.isfinite(verdict.score):
        return Verdict(verdict.score, verdict.reason, parts)
    return Verdict(None, NOT_FINITE, parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
