"""Training curves: one small figure a metric, drawn by matplotlib as SVG whose colours follow the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from posttrain.report.collect import Artifact, number, read_lines
from posttrain.report.figure import HELDOUT, TRAIN, drawing, quiet
from posttrain.report.rollouts import rollout_view
from posttrain.report.stages import words

# What says where a line stands is no curve.
AXES = ("step", "split", "tokens", "seconds", "epoch", "time", "rollout")
FIRST = ("loss", "accuracy", "reward_margin", "kl", "gradient_norm", "lr")
SHOWN = 6  # figures a run shows at once; the rest unfolds
# Of a run that learns from answers it samples, the loss says little: these are what is looked at.
ROLLOUTS = (
    "reward", "gold", "kl", "entropy", "response_tokens", "truncated", "explained_variance", "clipped",
    "loss",
)  # fmt: skip
LAST = ("tokens_per_second", "memory_mb", "sampling_seconds", "judging_seconds", "monitor_seconds")
TITLES = {
    "reward": "reward of the answers",
    "gold": "gold reward",
    "kl": "KL to the reference, nats an answer",
    "entropy": "entropy, nats a token",
    "response_tokens": "length of an answer, tokens",
    "truncated": "share of answers cut off",
    "explained_variance": "explained variance of the critic",
    "clipped": "share of ratios clipped",
    "length_correlation": "correlation of reward and length",
}
DENSE = 300  # points beyond which a curve is drawn as bucket means with a band from least to most


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
        sampled = "response_tokens" in metrics
        figures = [
            {
                "metric": name,
                "title": TITLES.get(name, words(name)) if sampled else words(name),
                "svg": draw(metrics[name], f"f{position}-{i}"),
                **_ends(metrics[name]),
            }
            for i, name in enumerate(
                sorted(metrics, key=partial(_importance, ROLLOUTS if sampled else FIRST))
            )
        ]
        if sampled:
            first = [figure for figure in figures if figure["metric"] in ROLLOUTS]
        else:
            first = [figure for figure in figures if figure["metric"] not in LAST][:SHOWN]
        more = [figure for figure in figures if figure not in first]
        run = {"name": artifact.name, "method": method_of(artifact), "figures": first, "more": more}
        runs.append({**run, "rollouts": rollout_view(artifact, f"r{position}")})
    return runs


def method_of(artifact: Artifact) -> str:
    """The training method's name, as far as the config tells it."""
    method = artifact.config.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    return str(name or "")


def read_metrics(artifact: Artifact) -> dict[str, dict[str, Series]]:
    """{metric: {split: series}}."""
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
    return found


def _importance(first: Sequence[str], name: str) -> tuple[int, str]:
    """Orders metrics: what people look for at the front, what few look for at the end."""
    if name in LAST:
        return len(first) + 1, name
    return first.index(name) if name in first else len(first), name


def _ends(splits: dict[str, Series]) -> dict[str, Any]:
    return {
        "ends": {split: [s.values[0], s.values[-1]] for split, s in splits.items() if s.values},
        "broken": sum(s.broken for s in splits.values()),
    }


def draw(splits: dict[str, Series], prefix: str) -> str:
    """An SVG of one metric over the steps: training as a line, held-out with a marker at each evaluation.

    prefix: makes the ids inside the SVG unique on the page.
    """
    with drawing(prefix) as (figure, made):
        axes = figure.add_subplot()
        for split, series in splits.items():
            if series.values:
                _plot(axes, series, HELDOUT if split == "heldout" else TRAIN, split)
        quiet(axes)
    return made.svg


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
