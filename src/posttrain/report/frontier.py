"""What each policy gained for how far it went: the reward–KL frontier, with best of n beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.report.figure import FAINT, HELDOUT, INK, TRAIN, drawing, quiet

KL, BEST_OF_N = "kl", "best_of_n"
TICKS = (0, 0.1, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # nats


@dataclass(frozen=True)
class Point:
    """A policy. x: nats an answer; y: the other task's headline. Ends are None where there is no interval."""

    name: str
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None


def frontier(
    summary: dict[str, Any], others: Sequence[dict[str, Any]], over: str | None, prefix: str
) -> dict[str, Any] | None:
    """The figure of an evaluation that holds the task `kl` and one to set against it; else None.

    others: all evaluations of the page, where best-of-n samples of the reference are looked for. over: label
    of the task to set against it, the first that fits where None. prefix: makes ids unique on the page.
    """
    kl = next((task for task in summary["tasks"] if task["name"] == KL), None)
    if kl is None:
        return None
    task = _against(summary, over)
    if task is None:
        return None
    points = _points(summary, kl, task)
    if not points:
        return None
    best = _best_of_n(others, kl["settings"].get("reference"), task)
    return {
        "title": task["title"],
        "metric": task["headline"],
        "points": [vars(point) for point in points],
        "best_of_n": best,
        "svg": draw(points, best, f"{task['title']}: {task['headline'].replace('_', ' ')}", prefix),
    }


def _against(summary: dict[str, Any], over: str | None) -> dict[str, Any] | None:
    fitting = [task for task in summary["tasks"] if task["name"] not in (KL, BEST_OF_N)]
    return next((task for task in fitting if over in (None, task["label"])), None)


def _points(summary: dict[str, Any], kl: dict[str, Any], task: dict[str, Any]) -> list[Point]:
    """The models for which both tasks have a value."""
    found = []
    for model in summary["models"]:
        x, y = (_estimate(summary, t["label"], t["headline"], model["name"]) for t in (kl, task))
        if x and y:
            found.append(Point(model["name"], x["mean"], x["low"], x["high"], y["mean"], y["low"], y["high"]))
    return found


def _estimate(summary: dict[str, Any], task: str, metric: str, model: str) -> dict[str, Any] | None:
    wanted = {"task": task, "metric": metric, "model": model, "group": ""}
    for e in summary["estimates"]:
        if all(e[key] == value for key, value in wanted.items()) and e["mean"] is not None:
            return dict(e)
    return None


def _best_of_n(
    summaries: Sequence[dict[str, Any]], reference: str | None, task: dict[str, Any]
) -> list[dict[str, Any]]:
    """Best of n answers of the reference, where the judge that gives `task` its headline valued them: its
    distance is at most log n - (n - 1)/n (Beirami et al., arXiv 2401.01879).
    """
    for summary in summaries:
        names = [model["name"] for model in summary["models"] if model["path"] == reference]
        for other in summary["tasks"]:
            if other["name"] == BEST_OF_N and names and _judge(other, "gold") == _judge(task, "judge"):
                return _curve(summary, other, names[0])
    return []


def _judge(task: dict[str, Any], field: str) -> Any:
    """The judge behind a task's numbers; a task that judges by itself is known by its own name."""
    judge = task["settings"].get(field) if field in task["settings"] else {"name": task["name"]}
    return {key: value for key, value in judge.items() if value is not None} if judge else None


def _curve(summary: dict[str, Any], task: dict[str, Any], model: str) -> list[dict[str, Any]]:
    found = []
    for metric in task["metrics"]:
        n = metric.removeprefix("gold@")
        y = _estimate(summary, task["label"], metric, model) if n != metric else None
        x = _estimate(summary, task["label"], f"kl@{n}", model)
        if x and y:
            ends = {"y_low": y["low"], "y_high": y["high"]}
            found.append({"n": int(n), "x": x["mean"], "y": y["mean"], **ends})
    return sorted(found, key=lambda point: int(point["n"]))


def draw(points: Sequence[Point], best: Sequence[dict[str, Any]], title: str, prefix: str) -> str:
    """An SVG: a dot a policy with both intervals, best of n as a line, KL on a square-root scale."""
    with drawing(prefix, (9.0, 4.6)) as (figure, made):
        axes = figure.add_subplot()
        axes.set_xscale("function", functions=(_root, np.square))
        for p in points:
            if p.y_low is not None and p.y_high is not None:
                axes.vlines(max(p.x, 0.0), p.y_low, p.y_high, color=TRAIN, alpha=0.4, linewidth=1.2)
            if p.x_low is not None and p.x_high is not None:
                axes.hlines(p.y, max(p.x_low, 0.0), p.x_high, color=TRAIN, alpha=0.4, linewidth=1.2)
        axes.plot([max(p.x, 0.0) for p in points], [p.y for p in points], "o", color=TRAIN, markersize=5)
        if best:
            x, y = [b["x"] for b in best], [b["y"] for b in best]
            axes.plot(x, y, "s-", color=HELDOUT, markersize=4, linewidth=1.2)
            for b in best:
                if b["y_low"] is not None:
                    axes.vlines(b["x"], b["y_low"], b["y_high"], color=HELDOUT, alpha=0.3, linewidth=1)
        quiet(axes)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.margins(x=0.06, y=0.08)
        axes.set_xlim(left=0)
        axes.set_xticks([tick for tick in TICKS if tick <= axes.get_xlim()[1]], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("KL to the reference, nats an answer (square-root scale)", color=INK)
        axes.set_ylabel(title, color=INK)
        last = [(f"best of {best[-1]['n']}", best[-1]["x"], best[-1]["y"])] if best else []
        figure.draw_without_rendering()
        _label(axes, [*_families(points), *last], [(p.x, p.y) for p in points])
    return made.svg


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))


def _families(points: Sequence[Point]) -> list[tuple[str, float, float]]:
    """A label for each policy; variants of one step (`ppo.s0`, `ppo.s1`) share one, at their middle."""
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.name.partition(".")[0], []).append(point)
    return [
        (
            name if len(some) > 1 else some[0].name,
            float(np.mean([p.x for p in some])),
            float(np.mean([p.y for p in some])),
        )
        for name, some in families.items()
    ]


def _label(
    axes: Any, labels: Sequence[tuple[str, float, float]], dots: Sequence[tuple[float, float]]
) -> None:
    """Names beside their points, where no other name or point is in the way."""
    scale = axes.figure.dpi / 72
    taken = []
    for x, y in dots:
        px, py = axes.transData.transform((max(x, 0.0), y))
        taken.append(_box(px, py, 4 * scale, 4 * scale))
    frame = axes.get_window_extent()
    for name, x, y in labels:
        px, py = axes.transData.transform((max(x, 0.0), y))
        wide, high = (0.58 * 9 * len(name) + 4) * scale, 11 * scale
        places = [
            (px + dx * scale + side * wide / 2, py + dy * scale, side, dx, dy)
            for reach in (8, 18, 28, 38)
            for side, dx, dy in (
                (1, 7, reach),
                (1, 7, -reach),
                (-1, -7, reach),
                (-1, -7, -reach),
                (0, 0, 4 + reach),
            )
        ]
        at = next((p for p in places if _free(_box(p[0], p[1], wide, high), taken, frame)), places[0])
        taken.append(_box(at[0], at[1], wide, high))
        line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7} if abs(at[4]) > 12 else None
        axes.annotate(
            name,
            (max(x, 0.0), y),
            (at[3], at[4]),
            textcoords="offset points",
            ha={1: "left", -1: "right", 0: "center"}[at[2]],
            va="center",
            arrowprops=line,
        )


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _box(x: float, y: float, wide: float, high: float) -> Box:
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _free(box: Box, taken: Sequence[Box], frame: Any) -> bool:
    x0, y0, x1, y1 = box
    inside = x0 >= frame.x0 and x1 <= frame.x1 and y0 >= frame.y0 and y1 <= frame.y1
    return inside and not any(x0 < t[2] and t[0] < x1 and y0 < t[3] and t[1] < y1 for t in taken)
