"""Lists of scored responses to one prompt, as in UltraFeedback. Cui et al. 2024.

{"instruction", "completions": [{"response", "model", "overall_score", "annotations": {aspect: {"Rating"}}}]}
or {"prompt", "responses": ["…", …], "scores": [4.5, …]}, and what is like them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from posttrain.formats.build import Origin, attempt, demonstration, rating, response
from posttrain.formats.fields import Plain, listed, named, number
from posttrain.formats.ranking import Scored, comparisons
from posttrain.formats.rejects import RowError
from posttrain.formats.trl import PROMPTS, asked_in
from posttrain.records import Comparison, Demonstration, Prompt, Rating, Response

LISTS = ("completions", "responses", "answers", "generations")
WORDS = ("response", "text", "answer", "content", "completion", "output")
OVERALL = ("overall_score", "score", "overall", "rating", "reward")
SCORES = ("scores", "ratings", "rewards")
JUDGES = ("judge", "annotator")


@dataclass(frozen=True, slots=True)
class _Entry:
    response: Response
    scores: dict[str, float | None]
    model: str
    field: str


def matches(row: Plain) -> bool:
    name = _list(row)
    if name is None or not any(row.get(asked) for asked in PROMPTS):
        return False
    if any(isinstance(row.get(scores), list) for scores in SCORES):
        return True
    first = row[name][0]
    return isinstance(first, dict) and any(field in first for field in (*OVERALL, "annotations", "scores"))


def read_ratings(row: Plain, origin: Origin) -> Iterator[Rating | RowError]:
    """One rating a response: "overall" where a score as a whole is given, and every aspect."""
    asked = _asked(row, origin)

    for entry in _entries(row):
        if isinstance(entry, RowError):
            yield entry
        elif all(score is None for score in entry.scores.values()):
            yield RowError(entry.field, "no score: none of its aspects has an answer")
        else:
            makers = {"response": entry.model} if entry.model else {}
            yield rating(asked, entry.response, origin, scores=entry.scores, makers=makers, judge=_judge(row))


def read_comparisons(row: Plain, origin: Origin) -> Iterator[Comparison | RowError]:
    """The pairs that the option `pairs` names, by the score that the option `aspect` names."""
    asked, aspect = _asked(row, origin), origin.options.aspect or "overall"
    scored = []
    for entry in _scored(row, origin):
        if isinstance(entry, RowError):
            yield entry
        else:
            scored.append(entry)
    if len(scored) < 2:
        yield RowError(
            _list(row) or "", f"nothing to compare: {len(scored)} responses with a score", by_choice=True
        )
    yield from comparisons(asked, scored, origin.options.pairs, origin, aspect=aspect, judge=_judge(row))


def read_best(row: Plain, origin: Origin) -> Iterator[Demonstration | RowError]:
    """The response with the highest score, the first of equals."""
    asked, best = _asked(row, origin), None
    for entry in _scored(row, origin):
        if isinstance(entry, RowError):
            yield entry
        elif best is None or entry.score > best.score:
            best = entry
    if best is None:
        raise RowError(_list(row) or "", "no response with a score")
    yield demonstration(asked, best.response, origin, {"response": best.maker} if best.maker else None)


def _scored(row: Plain, origin: Origin) -> Iterator[Scored | RowError]:
    for entry in _entries(row):
        if isinstance(entry, RowError):
            yield entry
            continue
        score = _value(entry.scores, origin.options.aspect)
        if score is None:
            yield RowError(
                entry.field, f"no score by {origin.options.aspect or 'overall'}: cannot be compared"
            )
        else:
            yield Scored(entry.response, score, entry.model, entry.field)


def _value(scores: Mapping[str, float | None], aspect: str) -> float | None:
    """The score to compare by; None where it would be a mean over aspects of which one has no answer."""
    if aspect and aspect != "mean":
        return scores.get(aspect)
    if "overall" in scores and not aspect:
        return scores["overall"]
    answered = [score for name, score in scores.items() if name != "overall"]
    if not answered or None in answered:
        return None
    return sum(score for score in answered if score is not None) / len(answered)


def _asked(row: Plain, origin: Origin) -> Prompt:
    models = ("models", "model_names") if _models(row) else ()
    return asked_in(row, origin, (*LISTS, *SCORES, *JUDGES, *models))


def _models(row: Plain) -> list[Any] | None:
    """Who wrote each response, where there is one for each."""
    models = row.get("models") or row.get("model_names")
    written = row.get(_list(row) or "")
    one_each = isinstance(models, list) and isinstance(written, list) and len(models) == len(written)
    return models if one_each else None


def _judge(row: Plain) -> str:
    return next((str(row[name]) for name in JUDGES if isinstance(row.get(name), str)), "")


def _list(row: Plain) -> str | None:
    return next((name for name in LISTS if isinstance(row.get(name), list) and row[name]), None)


def _entries(row: Plain) -> Iterator[_Entry | RowError]:
    name = _list(row) or LISTS[0]
    values = listed(row, name)
    beside = next((field for field in SCORES if isinstance(row.get(field), list)), None)
    scores = listed(row, beside) if beside else [None] * len(values)
    if len(scores) != len(values):
        raise RowError(beside or "", f"expected one score a response: got {len(scores)} for {len(values)}")
    models = _models(row) or [None] * len(values)
    for i, (value, score, model) in enumerate(zip(values, scores, models, strict=True)):
        yield attempt(partial(_entry, value, score, f"{name}[{i}]", model))


def _entry(value: Any, score: Any, field: str, model: Any) -> _Entry:
    if isinstance(value, str):
        overall = {"overall": number(score, f"{field} score")}
        return _Entry(response(value, field), overall, str(model or ""), field)
    if not isinstance(value, dict):
        raise RowError(field, f"expected a response: got {named(value)}")
    words = next((name for name in WORDS if isinstance(value.get(name), str)), None)
    if words is None:
        raise RowError(
            field, f"no words: expected one of {', '.join(WORDS)}, got {', '.join(map(str, value))}"
        )
    scores = _scores(value, field)
    if score is not None:
        scores["overall"] = number(score, f"{field} score")
    return _Entry(
        response(value[words], f"{field}.{words}"), scores, str(value.get("model") or model or ""), field
    )


def _scores(value: Plain, field: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in OVERALL:
        if name in value:
            found["overall"] = number(value[name], f"{field}.{name}")
            break
    for group in ("annotations", "scores"):
        aspects = value.get(group) or {}
        if not isinstance(aspects, dict):
            raise RowError(f"{field}.{group}", f"expected a score for each aspect: got {named(aspects)}")
        for aspect, given in aspects.items():
            graded = given.get("Rating", given.get("rating")) if isinstance(given, dict) else given
            found[aspect] = number(graded, f"{field}.{group}.{aspect}")
    return found
