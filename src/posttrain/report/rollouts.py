"""What a run on sampled answers was like: reward and gold over the KL, reward against length, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.report.collect import Artifact, number, read_lines
from posttrain.report.figure import FAINT, HELDOUT, INK, TRAIN, WORSE, drawing, quiet
from posttrain.report.text import visible

SHOWN = 12  # rollouts of which an answer is shown
LIMIT = 600  # characters of a prompt or an answer


def rollout_view(artifact: Artifact, prefix: str) -> dict[str, Any] | None:
    """Figures and answers of one run; None where it sampled none. prefix: makes ids unique on the page."""
    checks = list(read_lines(artifact.folder / "monitor.jsonl"))
    samples = list(read_lines(artifact.folder / "samples.jsonl"))
    if not checks and not samples:
        return None
    drawn = [over_kl(checks, f"{prefix}m"), against_length(samples, f"{prefix}l")]
    return {
        "figures": [figure for figure in drawn if figure],
        "alarms": [int(check["rollout"]) for check in checks if check.get("alarm")],
        "answers": along_the_way(samples),
    }


def over_kl(checks: Sequence[dict[str, Any]], prefix: str) -> dict[str, Any] | None:
    """Proxy and gold reward over √KL, as in Gao et al. (arXiv 2210.10760), figure 1; over the rollouts where
    no KL was measured.
    """
    seen = [check for check in checks if number(check.get("gold")) is not None]
    if len(seen) < 2:
        return None
    measured = all(number(check.get("kl")) is not None for check in seen)
    places = [max(check["kl"], 0.0) ** 0.5 if measured else check["rollout"] for check in seen]
    x = np.array(places, dtype=float)
    alarm = np.array([bool(check.get("alarm")) for check in seen])
    with drawing(prefix, (7.4, 3.3)) as (figure, made):
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, name, colour in ((above, "proxy", TRAIN), (below, "gold", HELDOUT)):
            y = np.array([check[name] for check in seen], dtype=float)
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.45)
            axes.scatter(x[~alarm], y[~alarm], s=12, color=colour, linewidths=0)
            axes.scatter(x[alarm], y[alarm], s=34, color=WORSE, marker="X", linewidths=0)
            quiet(axes)
        ends = [(at, c["gold_low"], c["gold_high"]) for at, c in zip(x, seen, strict=True) if "gold_low" in c]
        for at, low, high in ends:
            below.vlines(at, low, high, color=HELDOUT, alpha=0.35, linewidth=1.2)
        above.set_ylabel("reward", color=INK)
        below.set_ylabel("gold", color=INK)
        below.set_xlabel("√KL to the reference, KL in nats an answer" if measured else "rollout", color=INK)
    return {
        "title": "Reward and gold reward over √KL"
        if measured
        else "Reward and gold reward over the rollouts",
        "wide": True,
        "keys": [
            {"class": "train", "text": "reward learned from"},
            {"class": "heldout", "text": "gold, with 95 % intervals"},
            *([{"class": "worse", "text": "✖ alarm"}] if alarm.any() else []),
        ],
        "svg": made.svg,
    }


def against_length(samples: Sequence[dict[str, Any]], prefix: str) -> dict[str, Any] | None:
    """Reward of each kept answer against its tokens, at the run's beginning and at its end."""
    known = [
        s for s in samples if number(s.get("tokens")) is not None and number(s.get("reward")) is not None
    ]
    if len(known) < 4:
        return None
    first, last = known[0]["rollout"], known[-1]["rollout"]
    third = (last - first + 1) / 3
    parts = [
        [s for s in known if s["rollout"] < first + third],
        [s for s in known if s["rollout"] > last - third],
    ]
    with drawing(prefix, (3.6, 3.1)) as (figure, made):
        axes = figure.add_subplot()
        for some, colour in zip(parts, (TRAIN, HELDOUT), strict=True):
            x, y = [s["tokens"] for s in some], [s["reward"] for s in some]
            axes.scatter(x, y, s=14, color=colour, alpha=0.55, linewidths=0)
        quiet(axes)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.margins(0.06)
        axes.set_xlabel("tokens of the answer", color=INK)
        axes.set_ylabel("reward", color=INK)
    return {
        "title": "Reward against length",
        "wide": False,
        "keys": [
            {"class": "train", "text": "first third of the run"},
            {"class": "heldout", "text": "last third"},
        ],
        "svg": made.svg,
    }


def along_the_way(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first kept answer of rollouts at equal distances: always the same place, so none is picked."""
    first = {int(sample["rollout"]): sample for sample in reversed(samples)}
    rollouts = sorted(first)
    places = np.linspace(0, len(rollouts) - 1, min(SHOWN, len(rollouts))).round().astype(int)
    shown = [first[rollouts[i]] for i in dict.fromkeys(places.tolist())]
    return {
        "of": len(rollouts),
        "gold": any("gold" in sample for sample in shown),
        "rows": [_row(sample) for sample in shown],
    }


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "rollout": int(sample["rollout"]),
        "prompt": visible(str(sample.get("prompt") or ""), LIMIT),
        "response": visible(str(sample.get("response") or ""), LIMIT),
        "tokens": number(sample.get("tokens")),
        "reward": _number(sample.get("reward")),
        "gold": "no answer" if "gold" in sample and sample["gold"] is None else _number(sample.get("gold")),
        "cut": sample.get("finish") == "length",
    }


def _number(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.3g}".replace("-", "−")
