"""Training methods side by side: what each learned from, held in memory, cost, and gained, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.compare import Point, win_points
from posttrain.evaluation.runs import across_runs
from posttrain.report.best_of_n import BestOfN, best_of_n, picked_from
from posttrain.report.collect import Artifact, number, read_lines
from posttrain.report.curves import method_of
from posttrain.report.families import families, made_by
from posttrain.report.learned_from import learned_from, models_held
from posttrain.report.stages import column_scale
from posttrain.report.text import Scale, duration, size

KL = "kl"
SCORE, WON, NATS = Scale(1.0, 3, ""), Scale(100.0, 1, "%"), Scale(1.0, 2, "")

Outcomes = dict[tuple[str, str], list[dict[str, Any]]]  # lines of results.jsonl by (model, task)


def methods_table(
    evaluation: Artifact, summaries: Mapping[Path, dict[str, Any]], artifacts: Sequence[Artifact]
) -> dict[str, Any] | None:
    """One row a trained step of the evaluation, its seeds together, and one for best of n of the reference
    where an evaluation of the page measured that; None for fewer than two rows.

    summaries: of all evaluations of the page, by folder. The score is the first task's headline, its win rate
    that against the first model.
    """
    summary = summaries[evaluation.folder]
    trained = {m["name"]: made for m in summary["models"] if (made := made_by(m["path"], artifacts))}
    groups = {
        name: [
            (model, trained[model]) for model in models if model in trained and trained[model].kind == "train"
        ]
        for name, models in families(summary, artifacts).items()
    }
    groups = {name: members for name, members in groups.items() if members}
    tasks = [task for task in summary["tasks"] if task["name"] != KL]
    if len(groups) < 2 or not tasks:
        return None
    outcomes = _outcomes(evaluation)
    rows = [_row(name, members, summary, outcomes, artifacts) for name, members in groups.items()]
    found, where = _picked(summary, tasks[0], summaries)
    if found is not None:
        by_folder = {artifact.folder: artifact for artifact in artifacts}
        written = _score_scale(summary, tasks[0])
        rows.insert(1, _picking(found, written, by_folder[where], artifacts))
    return {
        "score": tasks[0]["title"],
        "first": summary["models"][0]["name"],
        "rows": rows,
        "seeds": any(row["runs"] > 1 for row in rows),
        "kl": any(row["kl"] for row in rows),
        "best_of_n": found is not None,
    }


def _row(
    name: str,
    members: Sequence[tuple[str, Artifact]],
    summary: dict[str, Any],
    outcomes: Outcomes,
    artifacts: Sequence[Artifact],
) -> dict[str, Any]:
    models, made = [model for model, _ in members], [artifact for _, artifact in members]
    first, task = made[0], next(task for task in summary["tasks"] if task["name"] != KL)
    kl = next((task for task in summary["tasks"] if task["name"] == KL), None)
    start = summary["models"][0]["name"]
    online = "online " if first.summary.get("online") and method_of(first) in ("dpo", "kto") else ""
    scores = [_points(outcomes, model, task) for model in models]
    peaks = [peak for a in made if (peak := number(a.summary.get("peak_memory_mb"))) is not None]
    took = [spent for a in made if (spent := number(a.summary.get("seconds"))) is not None]
    wins = [] if start in models else [_wins(outcomes, start, model, task) for model in models]
    return {
        "name": name,
        "method": online + method_of(first),
        "runs": len(members),
        "learned_from": learned_from(first, artifacts),
        "models": models_held(first),
        "memory": size(max(peaks) * 2**20) if peaks else "–",
        "seconds": duration(sum(took) / len(took)) if took else "–",
        "each": "",
        "score": _over_runs(scores, _score_scale(summary, task), _amount(task)),
        "wins": _over_runs(wins, WON, False),
        "kl": None if kl is None else _over_runs([_points(outcomes, m, kl) for m in models], NATS, True),
    }


def _score_scale(summary: dict[str, Any], task: dict[str, Any]) -> Scale:
    """Shares as percent, as everywhere on the page; else three digits."""
    written = column_scale(summary, task, task["headline"])
    return written if written.unit == WON.unit else SCORE


def _picking(
    found: BestOfN, written: Scale, evaluation: Artifact, artifacts: Sequence[Artifact]
) -> dict[str, Any]:
    """The row of best of n."""
    kl = found.estimate(f"kl@{found.n}")
    return {
        "name": f"best of {found.n}",
        "method": "",
        "runs": 1,
        "memory": "–",
        **picked_from(found, evaluation, artifacts),
        "score": _written(found.estimate("best"), written),
        "wins": _written(found.estimate("won"), WON),
        "kl": kl and {"mean": f"≤ {NATS.number(kl['mean'])}", "ends": "", "runs": ""},
    }


def _picked(
    summary: dict[str, Any], task: dict[str, Any], summaries: Mapping[Path, dict[str, Any]]
) -> tuple[BestOfN | None, Path]:
    """Best of n of the model that the KL is from, else of the first; and the evaluation that has it."""
    kl = next((task for task in summary["tasks"] if task["name"] == KL), None)
    reference = kl["settings"].get("reference") if kl else summary["models"][0]["path"]
    for folder, other in summaries.items():
        found = best_of_n([other], reference, task)
        if found is not None:
            return found, folder
    return None, Path()


def _outcomes(evaluation: Artifact) -> Outcomes:
    found: Outcomes = {}
    for line in read_lines(evaluation.folder / "results.jsonl"):
        found.setdefault((str(line.get("model")), str(line.get("task"))), []).append(line)
    return found


def _points(outcomes: Outcomes, model: str, task: dict[str, Any]) -> list[Point]:
    """One model's values of a task's headline."""
    metric = task["headline"]
    return [
        Point(line["item"], line["cluster"], line["metrics"][metric], line["weights"].get(metric, 1.0))
        for line in outcomes.get((model, task["label"]), ())
        if metric in line["metrics"]
    ]


def _wins(outcomes: Outcomes, before: str, after: str, task: dict[str, Any]) -> list[Point]:
    """On which items `after` beats `before`."""
    higher = task["headline"] not in task["lower_is_better"]
    return win_points(_points(outcomes, before, task), _points(outcomes, after, task), higher)


def _amount(task: dict[str, Any]) -> bool:
    return task["headline"] in task.get("amounts", ()) or bool(task["units"].get(task["headline"]))


def _over_runs(runs: Sequence[Sequence[Point]], written: Scale, amount: bool) -> dict[str, str] | None:
    """The mean over runs with its interval, and the lowest and highest of several; runs in which no item has
    a value are left out and counted.
    """
    known = [run for run in runs if any(point.value is not None for point in run)]
    if not known:
        return None
    cell = _written(across_runs(known, amount).as_dict(), written)
    means = [e.mean for run in known if (e := across_runs([run], amount)).mean is not None]
    if cell is not None:
        ends = [f"{written.number(min(means))} to {written.number(max(means))}"] * (len(means) > 1)
        silent = [f"{len(runs) - len(known)} without a value"] * (len(known) < len(runs))
        cell["runs"] = ", ".join(ends + silent)
    return cell


def _written(e: dict[str, Any] | None, written: Scale) -> dict[str, str] | None:
    if e is None or e["mean"] is None:
        return None
    ends = "" if e["low"] is None else f"[{written.number(e['low'])}, {written.number(e['high'])}]"
    return {"mean": f"{written.number(e['mean'])} {written.unit}".strip(), "ends": ends, "runs": ""}
