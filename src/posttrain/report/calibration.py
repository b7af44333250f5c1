"""Calibration curves: how sure a reward model is, against how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.report.figure import FAINT, TRAIN, drawing, quiet


def calibration_curves(summary: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """A figure for each model of each task that measured one. prefix: makes ids unique on the page."""
    titles = {task["label"]: task["title"] for task in summary["tasks"]}
    return [
        {
            "title": f"{titles[figure['task']]}: {figure['model']}",
            "n": sum(each["n"] for each in figure["bins"]),
            "svg": draw_calibration(figure["bins"], f"{prefix}-{i}"),
        }
        for i, figure in enumerate(summary.get("figures", []))
        if figure["kind"] == "calibration" and figure["bins"]
    ]


def draw_calibration(bins: Sequence[dict[str, Any]], prefix: str) -> str:
    """An SVG: mean probability of each bin against the share ranked rightly with its interval; on the
    diagonal the two agree.
    """
    with drawing(prefix, (3.6, 2.6)) as (figure, made):
        axes = figure.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1)
        for each in bins:
            if each["low"] is not None:
                axes.vlines(
                    each["predicted"], each["low"], each["high"], color=TRAIN, alpha=0.4, linewidth=1.4
                )
        x, y = [each["predicted"] for each in bins], [each["observed"] for each in bins]
        axes.plot(x, y, color=TRAIN, linewidth=0, marker="o", markersize=4)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(0, 1.02)
        quiet(axes)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    return made.svg
