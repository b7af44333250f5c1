"""What a finished step has to say for itself: an evaluation's headlines, the first and last rollout of RL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROLLOUT = {
    "reward": "reward",
    "gold": "gold score",
    "kl": "KL, nats an answer",
    "entropy": "entropy, nats a token",
    "response_tokens": "tokens an answer",
    "truncated": "cut off, share",
    "no_answer": "no reward, share",
}


def show_results(folder: Path, title: str = "") -> None:
    """Print a table of the results in a step's folder; nothing where the step has none of these kinds."""
    rows = _evaluated(folder / "summary.json") or _rollouts(folder / "metrics.jsonl")
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    if title:
        console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def _evaluated(summary: Path) -> list[tuple[str, ...]]:
    """The headline of every task and model, with its interval."""
    if not summary.is_file():
        return []
    said = json.loads(summary.read_text("utf-8"))
    if "estimates" not in said:
        return []
    headlines = {task["label"]: task["headline"] for task in said["tasks"]}
    rows: list[tuple[str, ...]] = [
        ("task", "metric", "model", "mean", f"{said['level']:.0%} interval", "items", "no answer")
    ]
    for found in said["estimates"]:
        if found["group"] == "" and headlines[found["task"]] == found["metric"]:
            held = found["low"] is not None and found["high"] is not None
            interval = f"{_number(found['low'])} … {_number(found['high'])}" if held else "–"
            rows.append(
                (
                    found["task"],
                    found["metric"],
                    found["model"],
                    _number(found["mean"]),
                    interval,
                    str(found["n"]),
                    str(found["missing"]),
                )
            )
    return rows


def _rollouts(metrics: Path) -> list[tuple[str, ...]]:
    """What the first and the last rollout of a run were like."""
    if not metrics.is_file():
        return []
    with open(metrics, encoding="utf-8") as lines:
        seen = [line for line in map(json.loads, lines) if "rollout" in line]
    if not seen:
        return []
    first, last = seen[0], seen[-1]
    names = {f"reward_{part}": f"reward, {part}" for part in _parts(first)}
    shown = {"reward": _ROLLOUT["reward"]} | names | _ROLLOUT
    rows: list[tuple[str, ...]] = [("", f"rollout {first['rollout']:.0f}", f"rollout {last['rollout']:.0f}")]
    rows += [
        (words, _number(first.get(name)), _number(_last(seen, name)))
        for name, words in shown.items()
        if name in first
    ]
    return rows


def _parts(line: Mapping[str, Any]) -> list[str]:
    return [name[7:] for name in line if name.startswith("reward_") and name not in _OF_REWARD]


_OF_REWARD = {"reward_std", "reward_chosen", "reward_rejected", "reward_margin"}
_OF_REWARD |= {"reward_desirable", "reward_undesirable", "reward_overall"}


def _last(lines: list[Mapping[str, Any]], name: str) -> Any:
    """A monitor does not look at every rollout."""
    return next(line[name] for line in reversed(lines) if name in line)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:.4g}"  # no negative zero
