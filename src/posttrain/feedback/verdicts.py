"""Asking a judge: one verdict an item or an error that says so, and only finite scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from posttrain.common.errors import PosttrainError
from posttrain.feedback.judge import Judge, PairJudge, Preference, Verdict
from posttrain.records import Prompt, Response

NOT_FINITE = "not a finite number"


def verdicts_of(judge: Judge, items: Sequence[tuple[Prompt, Response]], name: str) -> list[Verdict]:
    """What the judge says of each item. name: whose, as an error calls it (`judge 'exact_match'`).

    Raises PosttrainError where there are not as many verdicts as items.
    """
    said = judge.score(items)
    check_count(len(said), len(items), name)
    return [finite(verdict) for verdict in said]


def preferences_of(
    judge: PairJudge, items: Sequence[tuple[Prompt, Response, Response]], name: str
) -> list[Preference]:
    """What the judge says of each pair; name and errors as of `verdicts_of`."""
    said = judge.compare(items)
    check_count(len(said), len(items), name)
    return list(said)


def score_by(verdict: Verdict, aspect: str) -> Verdict:
    """The verdict with an aspect's score for its score."""
    if aspect == "overall":
        return verdict
    if aspect in verdict.parts:
        score = verdict.parts[aspect]
        return Verdict(score, verdict.reason or ("" if score is not None else NOT_FINITE), verdict.parts)
    if verdict.score is None and verdict.reason and not verdict.parts:
        return verdict  # nothing was said at all, and why is known
    return Verdict(None, _no_part(aspect, verdict.parts), verdict.parts)


def preference_by(preference: Preference, aspect: str) -> Preference:
    """The preference by one aspect; without an answer to the whole, there is none to its parts."""
    if aspect == "overall":
        return preference
    if aspect in preference.parts:
        return preference.parts[aspect]
    why = _no_part(aspect, preference.parts)
    return Preference(None, preference.reason if preference.probability is None else why)


def _no_part(aspect: str, parts: Mapping[str, object]) -> str:
    return f"no part '{aspect}' (parts: {', '.join(parts) or 'none'})"


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
