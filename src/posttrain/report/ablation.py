"""The ablation table: tasks and their facets down, the columns of an ablation across, each against one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.evaluation.compare import Point
from posttrain.evaluation.contrasts import Cell, contrast
from posttrain.report.ablation_config import AblationConfig
from posttrain.report.collect import Artifact, read_lines
from posttrain.report.stages import column_scale, words, written_difference
from posttrain.report.text import Scale, amount, several
from posttrain.report.trades import check_name, gains_and_losses, regressions

Asked = dict[tuple[str, str], list[dict[str, Any]]]  # lines of results.jsonl by (model, task label)


def ablation_table(
    cfg: AblationConfig, evaluation: Artifact, summary: dict[str, Any]
) -> dict[str, Any] | None:
    """The table of one evaluation as plain data; None for an evaluation of a single model.

    Raises ConfigError for a column, task or metric it does not hold, with the nearest.
    """
    models = [model["name"] for model in summary["models"]]
    if len(models) < 2:
        return None
    baseline = cfg.baseline or models[0]
    for name in (baseline, *cfg.watch):
        check_name("column", name, models, evaluation.name)
    asked = _asked(evaluation)
    rows = [row for task in summary["tasks"] for row in _rows(cfg, task, summary, models, baseline, asked)]
    for label in cfg.metrics:
        check_name("task", label, [task["label"] for task in summary["tasks"]], evaluation.name)
    return {
        "evaluation": evaluation.name,
        "baseline": baseline,
        "level": cfg.level,
        "columns": models,
        "rows": rows,
        "said": [gains_and_losses(name, rows, baseline) for name in models if name != baseline],
        "comparisons": sum(cell["verdict"] is not None for row in rows for cell in row["cells"]),
        "regressions": list(regressions(cfg, rows, baseline, evaluation.name)),
    }


def _asked(evaluation: Artifact) -> Asked:
    found: Asked = {}
    for line in read_lines(evaluation.folder / "results.jsonl"):
        found.setdefault((str(line.get("model")), str(line.get("task"))), []).append(line)
    return found


def _rows(
    cfg: AblationConfig,
    task: dict[str, Any],
    summary: dict[str, Any],
    models: Sequence[str],
    baseline: str,
    asked: Asked,
) -> Iterator[dict[str, Any]]:
    """The headline, then each group's, then the other metrics that were asked for."""
    headline = task["headline"]
    more = [metric for metric in cfg.metrics.get(task["label"], ()) if metric != headline]
    for metric in more:
        check_name("metric", metric, task["metrics"], task["label"])
    picks = [(headline, ""), *((headline, group) for group in task["groups"]), *((m, "") for m in more)]
    for metric, group in picks:
        columns = {
            model: _points(asked[model, task["label"]], metric, group)
            for model in models
            if (model, task["label"]) in asked
        }
        cells = contrast(
            columns,
            baseline,
            lower_is_better=metric in task["lower_is_better"],
            directed=metric not in task["undirected"],
            amount=metric in task["amounts"],
            level=cfg.level,
        )
        yield _row(task, metric, group, column_scale(summary, task, metric), models, cells)


def _points(lines: Sequence[dict[str, Any]], metric: str, group: str) -> list[Point]:
    return [
        Point(line["item"], line["cluster"], line["metrics"][metric], line["weights"].get(metric, 1.0))
        for line in lines
        if metric in line["metrics"] and group in ("", line["group"])
    ]


def _row(
    task: dict[str, Any],
    metric: str,
    group: str,
    written: Scale,
    models: Sequence[str],
    cells: Mapping[str, Cell],
) -> dict[str, Any]:
    lower = metric in task["lower_is_better"]
    name = task["title"] + (f" ({words(metric)})" if metric != task["headline"] else "")
    return {
        "task": task["label"],
        "title": group or name,
        "name": f"{name}: {group}" if group else name,
        "metric": metric,
        "group": group,
        "unit": written.unit,
        "hint": "" if group else words(metric) + (", lower is better" if lower else ""),
        "lower_is_better": lower,
        "directed": metric not in task["undirected"],
        "cells": [_cell(model, cells.get(model), written) for model in models],
    }


def _cell(column: str, cell: Cell | None, written: Scale) -> dict[str, Any]:
    if cell is None:
        return {"column": column, "state": "not applicable", "verdict": None, "best": False}
    value, against = cell.value, cell.against
    total = value.n + value.missing
    ends = f"[{written.number(value.low)}, {written.number(value.high)}]" if value.low is not None else ""
    return {
        "column": column,
        "state": "value" if value.mean is not None else "no value",
        "value": value.as_dict(),
        "against": against and against.as_dict(),
        "verdict": cell.verdict,
        "best": cell.best,
        "text": {
            "mean": written.number(value.mean),
            "interval": ends,
            "missing": f"{amount(value.missing)} of {amount(total)} not scored" if value.missing else "",
            "n": several(value.n, "item"),
            "change": written_difference(against.as_dict(), written)
            if against and against.mean is not None
            else None,
        },
        "many_missing": value.missing * 20 > total,
    }
