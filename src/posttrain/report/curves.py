"""Training curves: one small figure a metric, drawn by matplotlib as SVG whose colours follow the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.report.collect import Artifact, number, read_lines
from posttrain.report.stages import words

AXES = ("step", "split", "tokens", "seconds", "epoch", "time")  # say where a line stands, are no curves
FIRST = ("loss", "accuracy", "reward_margin", "kl", "gradient_norm", "lr")
LAST = ("tokens_per_second", "memory_mb")
SHOWN = 6  # figures a run shows at once; the rest unfolds
DENSE = 300  # points beyond which a curve is drawn as bucket means with a band from least to most

# Colours that occur in no figure otherwise; each is replaced by a variable of the page's style sheet.
INK, FAINT, TRAIN, HELDOUT = "#010203", "#040506", "#070809", "#0a0b0c"
VARIABLES = {INK: "--ink-2", FAINT: "--line", TRAIN: "--series-1", HELDOUT: "--series-2"}


@dataclass
class Series:
    """One metric on one split. broken: steps at which it was no finite number."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    broken: int = 0


def training_curves(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """For each artifact with a `metrics.jsonl`: its figures, and where each metric began and ended."""
    runs = []
    for position, artifact in enumerate(artifacts):
        metrics = read_metrics(artifact)
        if not metrics:
            continue
        figures = [
            {"metric": name, "title": words(name), "svg": draw(splits, f"f{position}-{i}"), **_ends(splits)}
            for i, (name, splits) in enumerate(metrics.items())
        ]
        first = [figure for figure in figures if figure["metric"] not in LAST][:SHOWN]
        more = [figure for figure in figures if figure not in first]
        runs.append({"name": artifact.name, "method": method_of(artifact), "figures": first, "more": more})
    return runs


def method_of(artifact: Artifact) -> str:
    """The training method's name, as far as the config tells it."""
    method = artifact.config.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    return str(name or "")


def read_metrics(artifact: Artifact) -> dict[str, dict[str, Series]]:
    """{metric: {split: series}}, the metrics people look for first at the front."""
    found: dict[str, dict[str, Series]] = {}
    for count, line in enumerate(read_lines(artifact.folder / "metrics.jsonl")):
        step = number(line.get("step"))
        for name, raw in line.items():
            value = number(raw)
            if name in AXES or (value is None and raw is not None):
                continue
            series = found.setdefault(name, {}).setdefault(str(line.get("split") or "train"), Series())
            if value is None or not np.isfinite(value):
                series.broken += 1
                continue
            series.steps.append(count if step is None else step)
            series.values.append(value)
    return {name: found[name] for name in sorted(found, key=_importance)}


def _importance(name: str) -> tuple[int, str]:
    if name in LAST:
        return len(FIRST) + 1, name
    return FIRST.index(name) if name in FIRST else len(FIRST), name


def _ends(splits: dict[str, Series]) -> dict[str, Any]:
    return {
        "ends": {split: [s.values[0], s.values[-1]] for split, s in splits.items() if s.values},
        "broken": sum(s.broken for s in splits.values()),
    }


def draw(splits: dict[str, Series], prefix: str) -> str:
    """An SVG of one metric over the steps: training as a line, held-out with a marker at each evaluation.

    prefix: makes the ids inside the SVG unique on the page.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix, "text.parse_math": False, "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for split, series in splits.items():
            if series.values:
                _plot(axes, series, HELDOUT if split == "heldout" else TRAIN, split)
        quiet(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return for_page(out.getvalue(), prefix)


def _plot(axes: Any, series: Series, colour: str, split: str) -> None:
    x, y = np.array(series.steps), np.array(series.values)
    if split == "heldout" or len(x) < 2:
        # Two or three measurements do not say what lies between them.
        axes.plot(x, y, color=colour, linewidth=1.4 if len(x) > 3 else 0, marker="o", markersize=3)
        return
    if len(x) > DENSE:
        x, y, low, high = _buckets(x, y)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        y = smooth(y)
    axes.plot(x, y, color=colour, linewidth=1.4)


def _buckets(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    parts = [part for part in np.array_split(np.arange(len(x)), DENSE // 2) if len(part)]
    return tuple(  # type: ignore[return-value]
        np.array([f(values[part]) for part in parts])
        for f, values in ((np.mean, x), (np.mean, y), (np.min, y), (np.max, y))
    )


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the points; the window shrinks towards the ends."""
    reach = len(y) // 40
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    half = np.minimum(np.minimum(i, len(y) - 1 - i), reach)
    return np.asarray((total[i + half + 1] - total[i - half]) / (2 * half + 1))


def quiet(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.tick_params(colors=INK, length=0, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.get_major_formatter().set_useOffset(False)
    axes.margins(x=0.02)


def for_page(svg: str, prefix: str) -> str:
    """Only the <svg> element, ids made unique, sentinel colours made variables, width left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
