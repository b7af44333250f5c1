"""From outcomes to estimates: every model × task × metric × group, and paired differences between models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from posttrain.evaluation.compare import LEVEL, Estimate, Point, difference, estimate, wins
from posttrain.evaluation.origins import origins
from posttrain.evaluation.task import ModelKind, Outcome
from posttrain.evaluation.tasks import TaskUse

Results = Mapping[tuple[str, str], "list[Outcome] | None"]


def summarise(
    uses: Sequence[TaskUse], models: Mapping[str, str], kinds: Mapping[str, ModelKind], results: Results
) -> dict[str, Any]:
    """What `summary.json` holds, but for seed and limit.

    results: (model, task label) → outcomes, None where the task is not applicable.
    """
    absent = [
        {"model": model, "task": task} for (model, task), outcomes in results.items() if outcomes is None
    ]
    amounts = {use.label: _amounts(use, results) for use in uses}
    return {
        "level": LEVEL,
        "models": [{"name": name, "path": path, "kind": kinds[name]} for name, path in models.items()],
        "tasks": [_describe(use, results, amounts[use.label]) for use in uses],
        "not_applicable": absent,
        "estimates": [
            row
            for use in uses
            for model in models
            for row in _estimates(results[model, use.label] or [], model, use.label, amounts[use.label])
        ],
        "differences": [
            row
            for use in uses
            for row in _differences(use, list(models), origins(models), results, amounts[use.label])
        ],
        "figures": [row for use in uses for model in models for row in _figures(use, model, results)],
    }


def _figures(use: TaskUse, model: str, results: Results) -> list[dict[str, Any]]:
    made = getattr(use.task, "figures", None)
    outcomes = results[model, use.label]
    found = made(outcomes) if made and outcomes else []
    return [{"model": model, "task": use.label, **figure} for figure in found]


def _describe(use: TaskUse, results: Results, amounts: Set[str]) -> dict[str, Any]:
    task = use.task
    all_outcomes = _all(use, results)
    metrics = list(dict.fromkeys(metric for o in all_outcomes for metric in o.metrics))
    return {
        "label": use.label,
        "name": use.name,
        "title": use.label if use.label != use.name else getattr(task, "title", "") or use.label,
        "headline": task.headline,
        "metrics": metrics,
        "groups": sorted({o.group for o in all_outcomes if o.group}, key=_natural),
        "units": {metric: unit for metric in metrics if (unit := _unit(task, metric))},
        "amounts": sorted(amounts),
        "lower_is_better": sorted(getattr(task, "lower_is_better", ())),
        "undirected": sorted(getattr(task, "undirected", ())),
        "settings": use.settings.model_dump(mode="json"),
    }


def _all(use: TaskUse, results: Results) -> list[Outcome]:
    return [o for (_, label), some in results.items() if label == use.label for o in some or ()]


def _unit(task: Any, metric: str) -> str:
    units: Mapping[str, str] = getattr(task, "units", {})
    return units.get(metric) or units.get(metric.partition("@")[0], "")


def _amounts(use: TaskUse, results: Results) -> set[str]:
    """The metrics that are no proportions: those with a unit, those the task names, and those of which some
    value of some model is neither 0 nor 1 nor a tie's half.
    """
    named = getattr(use.task, "amounts", ())
    seen: dict[str, bool] = {}
    for outcome in _all(use, results):
        for metric, value in outcome.metrics.items():
            seen[metric] = seen.get(metric, False) or value not in (None, 0.0, 0.5, 1.0)
    return {
        metric
        for metric, other in seen.items()
        if other or metric in named or metric.partition("@")[0] in named or _unit(use.task, metric)
    }


def _natural(group: str) -> list[tuple[bool, int, str]]:
    """Sorts "level 2" before "level 10"."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", group)
    ]


def _estimates(
    outcomes: Sequence[Outcome], model: str, task: str, amounts: Set[str]
) -> Iterator[dict[str, Any]]:
    for group, members in _groups(outcomes).items():
        for metric in _metrics(members):
            found = estimate(_points(members, metric), metric in amounts)
            yield {"model": model, "task": task, "metric": metric, "group": group, **found.as_dict()}


def _differences(
    use: TaskUse, models: list[str], origin: Mapping[str, str], results: Results, amounts: Set[str]
) -> Iterator[dict[str, Any]]:
    """Each model against the first and against the previous one, among those the task applies to: the one it
    was trained from, or the one before it in the list where that is not known or does not stand before it.
    """
    asked = [model for model in models if results[model, use.label] is not None]
    for position, after in enumerate(asked[1:], start=1):
        earlier = asked[:position]
        previous = origin.get(after)
        against = {asked[0]: ["first"]}
        against.setdefault(previous if previous in earlier else earlier[-1], []).append("previous")
        for before, roles in against.items():
            yield from _compare(use, before, after, roles, results, amounts)


def _compare(
    use: TaskUse, before: str, after: str, roles: list[str], results: Results, amounts: Set[str]
) -> Iterator[dict[str, Any]]:
    first, second = _groups(results[before, use.label] or []), _groups(results[after, use.label] or [])
    for group in first:
        if group not in second:
            continue
        for metric in _metrics(first[group]):
            if metric not in _metrics(second[group]):
                continue
            a, b = _points(first[group], metric), _points(second[group], metric)
            lower = metric in getattr(use.task, "lower_is_better", ())
            found = difference(a, b, amount=metric in amounts)
            said = None if metric in getattr(use.task, "undirected", ()) else verdict(found, lower)
            row: dict[str, Any] = {"task": use.label, "metric": metric, "group": group}
            row |= {"before": before, "after": after}
            row |= {"against": roles, **found.as_dict(), "verdict": said, "wins": None}
            if metric == getattr(use.task, "wins", None):
                row["wins"] = wins(a, b, not lower).as_dict()
            yield row


def verdict(found: Estimate, lower_is_better: bool) -> str | None:
    """ "better" or "worse" where the interval leaves out zero, "same" where it does not, None without one."""
    if found.low is None or found.mean is None:
        return None
    if not found.beyond_zero:
        return "same"
    return "better" if (found.mean < 0) == lower_is_better else "worse"


def _groups(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """All under "", then each named group, in order of first appearance."""
    groups: dict[str, list[Outcome]] = {"": list(outcomes)}
    for outcome in outcomes:
        if outcome.group:
            groups.setdefault(outcome.group, []).append(outcome)
    return groups


def _metrics(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(metric for outcome in outcomes for metric in outcome.metrics))


def _points(outcomes: Sequence[Outcome], metric: str) -> list[Point]:
    """An outcome that does not name the metric is no item of it; one that names it with None is missing."""
    return [
        Point(o.item, o.cluster, o.metrics[metric], o.weights.get(metric, 1.0))
        for o in outcomes
        if metric in o.metrics
    ]
