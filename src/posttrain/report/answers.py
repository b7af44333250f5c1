"""Answers of every stage to the same prompts, side by side; prompts are drawn by lot, not picked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.report.collect import Artifact, read_lines
from posttrain.report.stages import column_scale, words
from posttrain.report.text import visible


def sampled_answers(
    artifact: Artifact, summary: dict[str, Any], count: int, seed: int
) -> list[dict[str, Any]]:
    """For each task with answers: `count` prompts, group after group, and what each model said."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for line in read_lines(artifact.folder / "results.jsonl"):
        by_item = found.setdefault(str(line.get("task")), {}).setdefault(str(line.get("item")), {})
        by_item[str(line.get("model"))] = line
    sections = []
    for task in summary["tasks"]:
        answered = {
            item: by_model
            for item, by_model in found.get(task["label"], {}).items()
            if any(line.get("response") for line in by_model.values())
        }
        if not answered:
            continue
        chosen = _draw(answered, count, random.Random(f"{seed} {task['label']}"))
        prompts = [_prompt(answered[item], task, summary) for item in chosen]
        sections.append(
            {
                "task": task["label"],
                "title": task["title"],
                "of": len({next(iter(by_model.values())).get("cluster") for by_model in answered.values()}),
                "prompts": prompts,
            }
        )
    return sections


def _draw(items: dict[str, dict[str, Any]], count: int, lot: random.Random) -> list[str]:
    """At most one item a cluster; one group after the other, so that rare groups are seen too."""
    by_group: dict[str, list[str]] = {}
    clusters: set[str] = set()
    names = list(items)
    lot.shuffle(names)
    for item in names:
        line = next(iter(items[item].values()))
        if line.get("cluster") not in clusters:
            clusters.add(line.get("cluster"))
            by_group.setdefault(str(line.get("group") or ""), []).append(item)
    queues = [by_group[group] for group in sorted(by_group)]
    taken: list[str] = []
    while len(taken) < count and any(queues):
        for queue in queues:
            if queue and len(taken) < count:
                taken.append(queue.pop())
    return taken


def _prompt(
    by_model: dict[str, dict[str, Any]], task: dict[str, Any], summary: dict[str, Any]
) -> dict[str, Any]:
    any_line = next(iter(by_model.values()))
    return {
        "prompt": visible(str(any_line.get("prompt") or "")),
        "group": str(any_line.get("group") or ""),
        "answers": [
            _answer(model["name"], by_model[model["name"]], task, summary)
            for model in summary["models"]
            if model["name"] in by_model
        ],
    }


def _answer(
    model: str, line: dict[str, Any], task: dict[str, Any], summary: dict[str, Any]
) -> dict[str, Any]:
    metrics = line.get("metrics") or {}
    return {
        "model": model,
        "response": visible(str(line.get("response") or "")),
        "note": visible(str(line.get("note") or ""), 300),
        "scores": [
            {
                "metric": words(name),
                "value": _score(value, task, name, summary),
                "headline": name == task["headline"],
            }
            for name, value in _headline_first(metrics, task["headline"])
        ],
    }


def _headline_first(metrics: dict[str, Any], headline: str) -> Sequence[tuple[str, Any]]:
    return sorted(metrics.items(), key=lambda pair: pair[0] != headline)


def _score(value: float | None, task: dict[str, Any], metric: str, summary: dict[str, Any]) -> str:
    """One item's value: yes or no where the metric is a proportion, "not scored" in the third state."""
    if value is None:
        return "not scored" if metric == task["headline"] else "–"
    written = column_scale(summary, task, metric)
    if written.unit == "%" and value in (0, 1):
        return "yes" if value else "no"
    return f"{value:,.3g}".replace("-", "−")
