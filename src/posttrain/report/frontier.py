"""What each policy gained for how far it went: the reward–KL frontier, with best of n beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.report.best_of_n import BEST_OF_N, BestOfN, best_of_n
from posttrain.report.collect import Artifact
from posttrain.report.families import families
from posttrain.report.figure import FAINT, HELDOUT, INK, TRAIN, drawing, quiet

KL = "kl"
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
    summary: dict[str, Any],
    others: Sequence[dict[str, Any]],
    artifacts: Sequence[Artifact],
    over: str | None,
    prefix: str,
) -> dict[str, Any] | None:
    """The figure of an evaluation that holds the task `kl` and one to set against it; else None.

    others: all evaluations of the page, where best-of-n samples of the reference are looked for. artifacts:
    all steps of the page, which tell seeds of one step from other variants. over: label of the task to set
    against it, the first that fits where None. prefix: makes ids unique on the page.
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
    best = _curve(best_of_n(others, kl["settings"].get("reference"), task))
    groups = families(summary, artifacts)
    return {
        "title": task["title"],
        "metric": task["headline"],
        "points": [vars(point) for point in points],
        "best_of_n": best,
        "svg": draw(points, best, groups, f"{task['title']}: {task['headline'].replace('_', ' ')}", prefix),
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


def _curve(best: BestOfN | None) -> list[dict[str, Any]]:
    """Its distance is at most log n - (n - 1)/n (Beirami et al., arXiv 2401.01879)."""
    found = []
    for n in best.sizes if best else ():
        assert best is not None
        x, y = best.estimate(f"kl@{n}"), best.estimate(f"gold@{n}")
        if x and y:
            found.append({"n": n, "x": x["mean"], "y": y["mean"], "y_low": y["low"], "y_high": y["high"]})
    return found


def draw(
    points: Sequence[Point],
    best: Sequence[dict[str, Any]],
    families: Mapping[str, Sequence[str]],
    title: str,
    prefix: str,
) -> str:
    """An SVG: a dot a policy with both intervals, best of n as a line, KL on a square-root scale. families:
    the models that share a name, which are tied together.
    """
    with drawing(prefix, (9.0, 4.6)) as (figure, made):
        axes = figure.add_subplot()
        axes.set_xscale("function", functions=(_root, np.square))
        for p in points:
            if p.y_low is not None and p.y_high is not None:
                axes.vlines(max(p.x, 0.0), p.y_low, p.y_high, color=TRAIN, alpha=0.22, linewidth=1.2)
            if p.x_low is not None and p.x_high is not None:
                axes.hlines(p.y, max(p.x_low, 0.0), p.x_high, color=TRAIN, alpha=0.22, linewidth=1.2)
        axes.plot([max(p.x, 0.0) for p in points], [p.y for p in points], "o", color=TRAIN, markersize=5)
        names = _families(points, families)
        for name, x, y in names:
            for p in points:
                if p.name in families.get(name, ()):
                    axes.plot(_between(x, p.x), [y, p.y], color=TRAIN, alpha=0.5, linewidth=0.8)
        if best:
            axes.plot(
                [b["x"] for b in best],
                [b["y"] for b in best],
                "s-",
                color=HELDOUT,
                markersize=4,
                linewidth=1.2,
            )
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
        dots = [(p.x, p.y) for p in points] + [(b["x"], b["y"]) for b in best]
        _label(axes, [*names, *last], dots, _strokes(points, best))
    return made.svg


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))


def _between(x: float, other: float) -> list[float]:
    return [max(x, 0.0), max(other, 0.0)]


def _families(
    points: Sequence[Point], families: Mapping[str, Sequence[str]]
) -> list[tuple[str, float, float]]:
    """A name for each policy; seeds of one step share one, at their middle as the figure shows it."""
    found = []
    for name, models in families.items():
        some = [point for point in points if point.name in models]
        if some:
            root = float(np.mean([_root(np.array(p.x)) for p in some]))
            found.append((name, root**2, float(np.mean([p.y for p in some]))))
    return found


def _strokes(points: Sequence[Point], best: Sequence[dict[str, Any]]) -> list[tuple[float, ...]]:
    """The intervals as (x, y, x, y), which no name should stand on."""
    across = [(p.x_low, p.y, p.x_high, p.y) for p in points if p.x_low is not None and p.x_high is not None]
    up = [(p.x, p.y_low, p.x, p.y_high) for p in points if p.y_low is not None and p.y_high is not None]
    of_n = [(b["x"], b["y_low"], b["x"], b["y_high"]) for b in best if b["y_low"] is not None]
    return [*across, *up, *of_n]


def _label(
    axes: Any,
    labels: Sequence[tuple[str, float, float]],
    dots: Sequence[tuple[float, float]],
    strokes: Sequence[tuple[float, ...]],
) -> None:
    """Names beside their points, where no other name or point, and if there is such a place no interval, is
    in the way.
    """
    scale = axes.figure.dpi / 72

    def at(x: float, y: float) -> Any:
        return axes.transData.transform((max(x, 0.0), y))

    places = [at(x, y) for x, y in dots]
    taken = [_box(left, low, 6 * scale, 6 * scale) for left, low in places]
    lines = []
    for x0, y0, x1, y1 in strokes:
        (left, low), (right, high) = at(x0, y0), at(x1, y1)
        lines.append((left - scale, low - scale, right + scale, high + scale))
    frame = axes.get_window_extent()
    for name, x, y in sorted(labels, key=lambda label: -label[1]):
        wide, high = (0.58 * 9 * len(name) + 4) * scale, 12 * scale
        places = [(p, _box(*_beside(at(x, y), p, scale, wide), wide, high)) for p in PLACES]
        clear = (p for p in places if _free(p[1], [*taken, *lines], frame))
        place, box = next(clear, None) or next((p for p in places if _free(p[1], taken, frame)), places[0])
        taken.append(box)
        side, dx, dy = place
        far = abs(dx) + abs(dy) > 24
        axes.annotate(
            name,
            (max(x, 0.0), y),
            (dx, dy),
            textcoords="offset points",
            ha={1: "left", -1: "right", 0: "center"}[side],
            va="center",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.6} if far else None,
        )


# Where a name may stand, best first: which way it reaches from its place, and the place's distance in points.
PLACES = sorted(
    (
        (side, side * dx, dy)
        for side in (1, -1, 0)
        for dx in ((7, 20, 40, 70, 100) if side else (0,))
        for dy in (0, 8, -8, 14, -14, 22, -22, 34, -34, 48, -48, 64, -64, 84, -84, 110, -110)
        if side or abs(dy) >= 14
    ),
    key=lambda place: (abs(place[1]) + abs(place[2]), -place[0]),
)


def _beside(point: Any, place: tuple[int, int, int], scale: float, wide: float) -> tuple[float, float]:
    """The middle of a name that stands at `place` from a point."""
    side, dx, dy = place
    return point[0] + dx * scale + side * wide / 2, point[1] + dy * scale


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _box(x: float, y: float, wide: float, high: float) -> Box:
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _free(box: Box, taken: Sequence[Box], frame: Any) -> bool:
    x0, y0, x1, y1 = box
    inside = x0 >= frame.x0 and x1 <= frame.x1 and y0 >= frame.y0 and y1 <= frame.y1
    return inside and not any(x0 < t[2] and t[0] < x1 and y0 < t[3] and t[1] < y1 for t in taken)
