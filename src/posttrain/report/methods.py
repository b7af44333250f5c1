"""Training methods side by side: what each learned from, held in memory, cost, and gained, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.report.collect import Artifact, number
from posttrain.report.curves import method_of
from posttrain.report.text import Scale, amount, duration, size

KL = "kl"


def methods_table(summary: dict[str, Any], artifacts: Sequence[Artifact]) -> dict[str, Any] | None:
    """One row a trained step of the evaluation, its variants (seeds) together; None for fewer than two rows.

    The score is the first task's headline, its win rate that against the first model.
    """
    trained = {artifact.folder: artifact for artifact in artifacts if artifact.kind == "train"}
    families: dict[str, list[tuple[str, Artifact]]] = {}
    for model in summary["models"]:
        artifact = trained.get(Path(model["path"]).resolve())
        if artifact is not None:
            families.setdefault(model["name"].partition(".")[0], []).append((model["name"], artifact))
    tasks = [task for task in summary["tasks"] if task["name"] != KL]
    if len(families) < 2 or not tasks:
        return None
    rows = [_row(name, members, summary, tasks[0]) for name, members in families.items()]
    return {
        "score": tasks[0]["title"],
        "first": summary["models"][0]["name"],
        "rows": rows,
        "seeds": any(row["runs"] > 1 for row in rows),
        "kl": any(row["kl"] for row in rows),
    }


def _row(
    name: str, members: Sequence[tuple[str, Artifact]], summary: dict[str, Any], task: dict[str, Any]
) -> dict[str, Any]:
    models = [model for model, _ in members]
    artifacts = [artifact for _, artifact in members]
    first = artifacts[0]
    scores = _estimates(summary, task["label"], task["headline"], models)
    wins = [
        found["wins"]
        for found in summary["differences"]
        if (found["task"], found["metric"], found["group"]) == (task["label"], task["headline"], "")
        and found["after"] in models
        and "first" in found["against"]
        and (found.get("wins") or {}).get("mean") is not None
    ]
    spent = _estimates(summary, _label(summary, KL), None, models)
    return {
        "name": name,
        "method": ("online " if first.summary.get("online") and method_of(first) in ("dpo", "kto") else "")
        + method_of(first),
        "runs": len(members),
        "learned_from": _learned_from(first),
        "models": _models(first),
        "memory": _mean_text([number(a.summary.get("peak_memory_mb")) for a in artifacts], _megabytes),
        "seconds": _mean_text([number(a.summary.get("seconds")) for a in artifacts], duration),
        "score": _over_seeds(scores, Scale(1.0, 3, "")),
        "wins": _over_seeds(wins, Scale(100.0, 1, "%")),
        "kl": _over_seeds(spent, Scale(1.0, 2, "")),
    }


def _estimates(
    summary: dict[str, Any], label: str | None, metric: str | None, models: Sequence[str]
) -> list[dict[str, Any]]:
    """The estimates of these models over all items; metric: None is the task's headline."""
    task = next((task for task in summary["tasks"] if task["label"] == label), None)
    if task is None:
        return []
    wanted = (task["label"], metric or task["headline"], "")
    return [
        e
        for e in summary["estimates"]
        if (e["task"], e["metric"], e["group"]) == wanted and e["model"] in models and e["mean"] is not None
    ]


def _label(summary: dict[str, Any], name: str) -> str | None:
    return next((task["label"] for task in summary["tasks"] if task["name"] == name), None)


def _over_seeds(found: Sequence[dict[str, Any]], written: Scale) -> dict[str, str] | None:
    """The mean over seeds with the lowest and highest; of one run, its own interval."""
    if not found:
        return None
    means = [e["mean"] for e in found]
    ends = (min(means), max(means)) if len(found) > 1 else (found[0]["low"], found[0]["high"])
    mean = written.number(sum(means) / len(means))
    return {
        "mean": f"{mean} {written.unit}".strip(),
        "ends": "" if ends[0] is None else f"[{written.number(ends[0])}, {written.number(ends[1])}]",
    }


def _learned_from(artifact: Artifact) -> str:
    """Rows, or prompts and the answers that were sampled and judged."""
    told = artifact.summary
    kept = number((told.get("rows") or {}).get("kept"))
    online = told.get("online")
    if not online:
        return f"{amount(kept)} rows"
    judge = ((artifact.config.get("online") or {}).get("judge") or {}).get("name", "a judge")
    return f"{amount(kept)} prompts, {amount(online.get('answers'))} answers scored by {judge}"


def _models(artifact: Artifact) -> str:
    held = artifact.summary.get("models")
    if not isinstance(held, dict) or not held:
        return "–"
    return f"{', '.join(held)} ({amount(sum(held.values()))} parameters)"


def _mean_text(values: Sequence[float | None], write: Any) -> str:
    known = [value for value in values if value is not None]
    return str(write(sum(known) / len(known))) if known else "–"


def _megabytes(count: float) -> str:
    return size(count * 2**20)
