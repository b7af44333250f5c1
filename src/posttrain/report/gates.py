"""What each gate on the way let through, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.report.collect import Artifact
from posttrain.report.text import scale, several

MARKS = {"rose": "better", "held": "same", "fell": "worse", "unknown": "none"}


def gate_table(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """One row a gate, in the order they were passed."""
    return [_row(artifact) for artifact in artifacts if artifact.kind == "gate"]


def _row(artifact: Artifact) -> dict[str, Any]:
    told = artifact.summary
    found = told["difference"]
    ends = [found["low"], found["high"]] if found["low"] is not None else []
    means = [told[role]["mean"] for role in ("incumbent", "candidate") if told[role]["mean"] is not None]
    written = scale(means, [ends[1] - ends[0]] if ends else [], False)
    lost = found["missing"] + told["unpaired"]
    return {
        "step": artifact.name,
        "counts": f"{told['metric']} of {told['task']}",
        "incumbent": f"{told['incumbent']['name']} {written.number(told['incumbent']['mean'])}",
        "candidate": f"{told['candidate']['name']} {written.number(told['candidate']['mean'])}",
        "difference": written.number(found["mean"], True),
        "interval": f"[{', '.join(written.number(end, True) for end in ends)}]" if ends else "",
        "basis": several(found["n"], "item")
        + (f", {several(lost, 'item')} without two values" if lost else ""),
        "verdict": told["verdict"],
        "mark": MARKS[told["verdict"]],
        "goes_on": told["goes_on"],
        "why": told["why"],
    }
