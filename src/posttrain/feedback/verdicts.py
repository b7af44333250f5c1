"""Asking a judge: one verdict an item or an error that names the judge, and only numbers to reckon with.

A judge may be anybody's code. Whoever asks one asks here, so that each mistake of it is told once and alike.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from posttrain.common.errors import PosttrainError
from posttrain.feedback.judge import Judge, PairJudge, Preference, Verdict
from posttrain.records import Prompt, Response

NOT_FINITE = "not a finite number"
LARGEST = 1e15  # the square of a larger score, summed over a batch, is no float32

T = TypeVar("T")


def verdicts_of(judge: Judge, items: Sequence[tuple[Prompt, Response]], name: str) -> list[Verdict]:
    """What the judge says of each item. name: whose, as an error calls it (`judge 'exact_match'`).

    Raises PosttrainError where there are not as many verdicts as items, one of them is no verdict or has a
    score beyond ±LARGEST, or the judge itself fails.
    """
    said = _asked(judge.score, items, name, Verdict)
    return [_verdict(verdict, f"{name}, answer {i} of {len(said)}") for i, verdict in enumerate(said, 1)]


def preferences_of(
    judge: PairJudge, items: Sequence[tuple[Prompt, Response, Response]], name: str
) -> list[Preference]:
    """What the judge says of each pair. name: as of `verdicts_of`, as are the errors; a probability must lie
    in [0, 1].
    """
    said = _asked(judge.compare, items, name, Preference)
    return [_preference(each, f"{name}, answer {i} of {len(said)}") for i, each in enumerate(said, 1)]


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


def _no_part(aspect: str, parts: Mapping[str, Any]) -> str:
    return f"no part '{aspect}' (parts: {', '.join(parts) or 'none'})"


def finite(verdict: Verdict) -> Verdict:
    """The verdict with None, no answer, in place of each number that is not finite."""
    parts = {name: _finite(value) for name, value in verdict.parts.items()}
    if verdict.score is None or math.isfinite(verdict.score):
        return Verdict(verdict.score, verdict.reason, parts)
    return Verdict(None, NOT_FINITE, parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _asked(ask: Callable[[Any], Any], items: Sequence[Any], name: str, kind: type[T]) -> list[T]:
    """What the judge gives, as many of its kind as items. Its own failure is told with where it failed; an
    error that a user can mend stays what it is.
    """
    try:
        said = ask(items)
    except (PosttrainError, MemoryError):
        raise
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        at = frames[min(1, len(frames) - 1)]  # the judge's own line, where its code was reached at all
        told = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
        raise PosttrainError(
            f"{name} failed on {len(items)} questions: {told} ({at.filename}, line {at.lineno}); mend the "
            "judge"
        ) from e
    wanted = f"a list with a {kind.__name__} for each question"
    if isinstance(said, str) or not isinstance(said, Sequence):
        raise PosttrainError(f"{name} gave {_shown(said)} instead of {wanted}; mend the judge")
    if len(said) != len(items):
        raise PosttrainError(f"{name} gave {len(said)} answers to {len(items)} questions; mend the judge")
    odd = [each for each in said if not isinstance(each, kind)]
    if odd:
        raise PosttrainError(f"{name} gave {_shown(odd[0])} in its list instead of {wanted}; mend the judge")
    return list(said)


def _verdict(verdict: Verdict, name: str) -> Verdict:
    if not isinstance(verdict.parts, Mapping):
        raise PosttrainError(f"{name}: parts is {_shown(verdict.parts)}, no mapping; mend the judge")
    parts = {
        _text(part, name, "the name of a part"): _number(value, name, f"part '{part}'")
        for part, value in verdict.parts.items()
    }
    reason = _text(verdict.reason, name, "reason")
    return finite(Verdict(_number(verdict.score, name, "score"), reason, parts))


def _preference(preference: Preference, name: str) -> Preference:
    p = _number(preference.probability, name, "probability")
    reason = _text(preference.reason, name, "reason")
    if p is not None and not math.isfinite(p):
        p, reason = None, NOT_FINITE
    if p is not None and not 0 <= p <= 1:
        raise PosttrainError(f"{name}: probability {p:g} does not lie in [0, 1]; mend the judge")
    if not isinstance(preference.parts, Mapping):
        raise PosttrainError(f"{name}: parts is {_shown(preference.parts)}, no mapping; mend the judge")
    parts = {}
    for part, each in preference.parts.items():
        if not isinstance(each, Preference):
            raise PosttrainError(
                f"{name}: part '{part}' is {_shown(each)} instead of a Preference; mend the judge"
            )
        parts[part] = _preference(each, f"{name}, part '{part}'")
    return Preference(p, reason, parts, _orders(preference.orders, name))


def _orders(orders: Any, name: str) -> tuple[float, float] | None:
    if orders is None:
        return None
    shares = [_number(share, name, "orders") for share in orders] if isinstance(orders, Sequence) else []
    if len(shares) != 2 or not all(share is not None and 0 <= share <= 1 for share in shares):
        raise PosttrainError(f"{name}: orders is {_shown(orders)}, not two probabilities; mend the judge")
    return shares[0], shares[1]  # type: ignore[return-value]  # neither is None


def _number(value: Any, name: str, what: str) -> float | None:
    """A score as a float; None stays None, and what is not finite is for `finite`."""
    if value is None:
        return None
    if not isinstance(value, Real):
        raise PosttrainError(f"{name}: {what} is {_shown(value)}, neither a number nor None; mend the judge")
    if LARGEST < abs(value) < math.inf:  # type: ignore[operator]  # a Real can be compared
        raise PosttrainError(
            f"{name}: {what} lies beyond ±{LARGEST:g}, and the variance of such numbers overflows; scale "
            "the judge's scores, or give None where there is none"
        )
    return float(value)


def _text(value: Any, name: str, what: str) -> str:
    if not isinstance(value, str):
        raise PosttrainError(f"{name}: {what} is {_shown(value)}, no text; mend the judge")
    return value


def _shown(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
