"""An evaluation as tables: models down; tasks, groups or metrics across; every number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from posttrain.report.text import Scale, amount, scale, several

SAID = {"better": "better on", "worse": "worse on", "same": "no difference seen on"}
WILSON = "Wilson"  # how `evaluation.compare` opens the name of the method it uses for proportions


def stage_table(summary: dict[str, Any]) -> dict[str, Any]:
    """The headline metric of each task."""
    return _table(
        summary, [(task, task["headline"], "") for task in summary["tasks"]], lambda t, m, g: t["title"]
    )


def group_tables(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """For each task with groups, its headline metric by group, of the models that could be asked."""
    return [
        _about(
            task, [(task, task["headline"], group) for group in task["groups"]], lambda t, m, g: g, summary
        )
        for task in summary["tasks"]
        if task["groups"]
    ]


def metric_tables(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """For each task, every metric it measured, of the models that could be asked."""
    return [
        _about(task, [(task, metric, "") for metric in task["metrics"]], lambda t, m, g: words(m), summary)
        for task in summary["tasks"]
    ]


def _about(task: dict[str, Any], picks: Any, title: Any, summary: dict[str, Any]) -> dict[str, Any]:
    table = _table(summary, picks, title)
    silent = {a["model"] for a in summary["not_applicable"] if a["task"] == task["label"]}
    rows = [row for row in table["rows"] if row["model"] not in silent]
    about = {"task": task["label"], "title": task["title"], "metric": task["headline"]}
    return {**about, "columns": table["columns"], "rows": rows}


def difference_table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every paired difference of the headline metrics, over all items, in words and numbers."""
    rows = []
    for task in summary["tasks"]:
        written = column_scale(summary, task, task["headline"])
        for found in _differences(summary, task, task["headline"], ""):
            rows.append({**found, "title": task["title"], "text": written_difference(found, written)})
    return rows


def verdicts(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What changed from model to model: an entry a pair of consecutive ones, with every headline metric."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in difference_table(summary):
        if "previous" in row["against"]:
            said = {"task": row["title"], "verdict": row["verdict"], "text": row["text"]}
            said["said"] = SAID.get(row["verdict"]) or _undirected(row)
            found.setdefault((row["after"], row["before"]), []).append(said)
    order = [model["name"] for model in summary["models"]]
    pairs = sorted(found, key=lambda pair: order.index(pair[0]))
    return [{"after": after, "before": before, "changes": found[after, before]} for after, before in pairs]


def _undirected(row: dict[str, Any]) -> str:
    """What is said of a difference of which neither direction is better, or of one without an interval."""
    if row["low"] is None:
        return "no interval on" if row["n"] else "nothing to compare on"
    if row["low"] <= 0 <= row["high"]:
        return SAID["same"]
    return "more of" if row["mean"] > 0 else "less of"


def count_comparisons(summary: dict[str, Any]) -> int:
    """How many paired intervals the flags of the page rest on."""
    return sum(found["low"] is not None for found in summary["differences"] if "previous" in found["against"])


def words(name: str) -> str:
    """`loss_per_byte` → "loss per byte"."""
    return name.replace("_", " ").replace("/", " · ")


def column_scale(summary: dict[str, Any], task: dict[str, Any], metric: str) -> Scale:
    """One scale for a metric wherever it stands: percent where it is a proportion for every model."""
    found = [e for e in summary["estimates"] if e["task"] == task["label"] and e["metric"] == metric]
    means = [e["mean"] for e in found if e["mean"] is not None]
    whole = [e for e in found if e["group"] == "" and e["low"] is not None]
    unit = task["units"].get(metric, "")
    share = not unit and bool(means) and bool(whole) and all(e["method"].startswith(WILSON) for e in whole)
    share = share and all(0 <= mean <= 1 for mean in means)
    return scale(means, [e["high"] - e["low"] for e in whole], share, unit)


def written_difference(found: dict[str, Any], written: Scale) -> dict[str, str]:
    """Texts of a paired difference: value, interval, wins, and how it was computed."""
    unit = "points" if written.unit == "%" else written.unit
    written = _fine_enough(found, written)
    low, high = written.number(found["low"], True), written.number(found["high"], True)
    won = Scale(100.0, 1, "%")
    mean = written.number(found["mean"], True)
    return {
        "mean": f"{mean} {unit}".strip(),
        "short": f"{mean} {unit}" if unit == "points" else mean,
        "interval": f"[{low}, {high}]" if found["low"] is not None else "",
        "basis": f"paired over {several(found['n'], 'item')} in {several(found['clusters'], 'cluster')}"
        + (f", {several(found['missing'], 'pair')} without a value" if found["missing"] else "")
        + f"; {found['method']}",
        "wins": _interval(found.get("wins"), won),
    }


def _interval(e: dict[str, Any] | None, written: Scale) -> str:
    if not e or e["mean"] is None:
        return ""
    ends = f" [{written.number(e['low'])}, {written.number(e['high'])}]" if e["low"] is not None else ""
    return f"{written.number(e['mean'])} {written.unit}{ends}"


def _fine_enough(found: dict[str, Any], written: Scale) -> Scale:
    """No fewer digits than the column has, and enough that an end beyond zero is not written as zero."""
    if found["low"] is None or found["high"] <= found["low"]:
        return written
    own = scale([found["mean"]], [found["high"] - found["low"]], written.unit == "%")
    digits = max(written.digits, own.digits)
    nearest = min(abs(found["low"]), abs(found["high"])) * written.factor
    while found["low"] * found["high"] > 0 and digits < 8 and round(nearest, digits) == 0:
        digits += 1
    return replace(written, digits=digits)


def _table(
    summary: dict[str, Any], picks: Sequence[tuple[dict[str, Any], str, str]], title: Any
) -> dict[str, Any]:
    columns = [
        _column(summary, task, metric, group, title(task, metric, group)) for task, metric, group in picks
    ]
    rows = [
        {
            "model": model["name"],
            "kind": model["kind"],
            "cells": [_cell(summary, column, model["name"]) for column in columns],
        }
        for model in summary["models"]
    ]
    return {"columns": columns, "rows": rows}


def _column(
    summary: dict[str, Any], task: dict[str, Any], metric: str, group: str, title: str
) -> dict[str, Any]:
    written = column_scale(summary, task, metric)
    found = [
        e for e in summary["estimates"] if _is(e, task["label"], metric, group) and e["mean"] is not None
    ]
    ends = [x for e in found for x in (e["low"], e["high"], e["mean"]) if x is not None]
    domain = (0.0, 1.0) if written.unit == "%" else (min(ends, default=0.0), max(ends, default=1.0))
    return {
        "task": task["label"],
        "metric": metric,
        "group": group,
        "title": title,
        "unit": written.unit,
        "hint": _hint(written.unit, title, metric in task["lower_is_better"]),
        "domain": domain,
        "scale": written,
        "settings": task["settings"],
    }


def _hint(unit: str, title: str, lower_is_better: bool) -> str:
    unit = "" if unit in ("%", title) else unit
    return ", ".join(part for part in (unit, "lower is better" if lower_is_better else "") if part)


def _cell(summary: dict[str, Any], column: dict[str, Any], model: str) -> dict[str, Any]:
    label, metric, group = column["task"], column["metric"], column["group"]
    if any(a["model"] == model and a["task"] == label for a in summary["not_applicable"]):
        return {"state": "not applicable"}
    found = [e for e in summary["estimates"] if e["model"] == model and _is(e, label, metric, group)]
    if not found:
        return {"state": "not measured"}
    e, written = found[0], column["scale"]
    cell = {"state": "value" if e["mean"] is not None else "no value", **_numbers(e)}
    total = e["n"] + e["missing"]
    cell["text"] = {
        "mean": written.number(e["mean"]),
        "interval": f"[{written.number(e['low'])}, {written.number(e['high'])}]"
        if e["low"] is not None
        else "",
        "method": e["method"],
        "n": several(e["n"], "item")
        + (f" in {several(e['clusters'], 'cluster')}" if e["clusters"] < e["n"] else ""),
        "missing": f"{amount(e['missing'])} of {amount(total)} not scored" if e["missing"] else "",
    }
    cell["many_missing"] = e["missing"] * 20 > total
    cell["range"] = _range(e, column["domain"])
    task = next(t for t in summary["tasks"] if t["label"] == label)
    cell["change"] = next(
        (
            {"verdict": d["verdict"], "before": d["before"], "text": written_difference(d, written)}
            for d in _differences(summary, task, metric, group)
            if d["after"] == model and "previous" in d["against"]
        ),
        None,
    )
    return cell


def _numbers(e: dict[str, Any]) -> dict[str, Any]:
    return {key: e[key] for key in ("mean", "low", "high", "n", "clusters", "missing", "method")}


def _range(e: dict[str, Any], domain: tuple[float, float]) -> dict[str, float] | None:
    """Where mean and ends stand on the column's axis, in percent of its width."""
    low, high = domain
    if e["mean"] is None or high <= low:
        return None
    at = {key: 100 * (e[key] - low) / (high - low) for key in ("mean", "low", "high") if e[key] is not None}
    return {"low": at["mean"], "high": at["mean"], **at}


def _differences(
    summary: dict[str, Any], task: dict[str, Any], metric: str, group: str
) -> list[dict[str, Any]]:
    return [d for d in summary["differences"] if _is(d, task["label"], metric, group)]


def _is(row: dict[str, Any], task: str, metric: str, group: str) -> bool:
    return bool(row["task"] == task and row["metric"] == metric and row["group"] == group)
