"""What a model knows, leaves open and gets wrong, stage by stage: stacked bars with their intervals.

The figure of Phi-4's technical report (arXiv 2412.08905, figure 6), with what it leaves out: intervals, and
the same for each group of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.report.figure import BETTER, FAINT, INK, WORSE, drawing
from posttrain.report.text import amount

OPEN = ("not_attempted", "declined")  # what tasks call an answer that leaves the question open
SHOWN = 0.07  # a share below this has no room for its number inside the bar


def evolution(summary: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """For each task that measures all three shares, a figure over all questions and one a group.

    prefix: makes ids unique on the page.
    """
    found: list[dict[str, Any]] = []
    for task in summary["tasks"]:
        left_open = next((name for name in OPEN if name in task["metrics"]), "")
        if not left_open or not {"correct", "incorrect"} <= {*task["metrics"]}:
            continue
        shares = ("correct", left_open, "incorrect")
        figures: list[dict[str, Any]] = []
        for group in ("", *task["groups"]):
            stages = _stages(summary, task["label"], shares, group)
            if any(stage["n"] for stage in stages):
                svg = draw_shares(stages, f"{prefix}-{len(found)}-{len(figures)}", wide=not group)
                figures.append({"group": group, "stages": stages, "svg": svg})
        if figures:
            found.append({"title": task["title"], "open": left_open.replace("_", " "), "figures": figures})
    return found


def _stages(
    summary: dict[str, Any], task: str, shares: tuple[str, str, str], group: str
) -> list[dict[str, Any]]:
    """The models that were asked, in the order of the evaluation; of one without a graded answer no share is
    known.
    """
    found = []
    for model in summary["models"]:
        about = {
            e["metric"]: e
            for e in summary["estimates"]
            if (e["model"], e["task"], e["group"]) == (model["name"], task, group) and e["metric"] in shares
        }
        if len(about) == len(shares):
            first = about["correct"]
            found.append(
                {
                    "model": model["name"],
                    "n": first["n"],
                    "missing": first["missing"],
                    "shares": [{k: about[name][k] for k in ("mean", "low", "high")} for name in shares],
                    "text": [_written(about[name]) for name in shares],
                    "about": f"{amount(first['n'])} answers"
                    + (f", {amount(first['missing'])} not graded" if first["missing"] else ""),
                }
            )
    return found


def _written(e: dict[str, Any]) -> dict[str, str]:
    if e["mean"] is None:
        return {"mean": "–", "interval": ""}
    ends = f"[{100 * e['low']:.1f}, {100 * e['high']:.1f}]" if e["low"] is not None else ""
    return {"mean": f"{100 * e['mean']:.1f}\u202f%", "interval": ends}


def draw_shares(stages: Sequence[dict[str, Any]], prefix: str, wide: bool) -> str:
    """An SVG: a bar a stage, first above; the interval of the correct share at the end of its part, that of
    the incorrect share, counted from the right, at the beginning of its own.
    """
    width = 7.2 if wide else 3.6
    with drawing(prefix, (width, 0.45 + 0.36 * len(stages))) as (figure, made):
        axes = figure.add_subplot()
        for row, stage in enumerate(stages):
            _bar(axes, row, stage["shares"], SHOWN if wide else 2 * SHOWN)
        axes.set_yticks(range(len(stages)), [stage["model"] for stage in stages])
        axes.set_ylim(len(stages) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100\u202f%"])
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(colors=INK, length=0, labelcolor=INK)
    return made.svg


def _bar(axes: Any, row: int, shares: Sequence[dict[str, float | None]], room: float) -> None:
    """One stage. room: the least share whose number is written inside."""
    left = 0.0
    if all(share["mean"] is None for share in shares):
        axes.text(0.01, row, "nothing graded", ha="left", va="center", color=INK)
    for share, colour, opacity in zip(shares, (BETTER, FAINT, WORSE), (0.45, 0.8, 0.45), strict=True):
        mean = share["mean"] or 0.0
        axes.barh(row, mean, left=left, height=0.66, color=colour, alpha=opacity, linewidth=0)
        if mean >= room:
            axes.text(left + mean / 2, row, f"{100 * mean:.0f}", ha="center", va="center", color=INK)
        left += mean
    correct, _, incorrect = shares
    _whisker(axes, row + 0.23, correct["low"], correct["high"])
    if incorrect["low"] is not None and incorrect["high"] is not None:
        _whisker(axes, row - 0.23, 1 - incorrect["high"], 1 - incorrect["low"])


def _whisker(axes: Any, y: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=INK, linewidth=1.3, solid_capstyle="butt")
        axes.vlines([low, high], y - 0.06, y + 0.06, color=INK, linewidth=1.3)
