"""What each step cost, where its rows came from, and what it was made of: read from the manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.report.collect import Artifact, first_number, read_lines
from posttrain.report.curves import method_of
from posttrain.report.text import amount, duration, size

TOKENS = ("tokens",)
SPEED = ("tokens_per_second",)
MEMORY = ("peak_memory_mb",)


def cost_table(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """One row a step, in the order they were made, and the total of what is known; numbers and texts."""
    rows = [_cost(artifact) for artifact in artifacts]
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    tokens = [row["tokens"] for row in rows if row["tokens"] is not None]
    total = {"seconds": sum(known) if known else None, "tokens": sum(tokens) if tokens else None}
    memory = max((row["memory"] for row in rows if row["memory"] is not None), default=None)
    longest = max(known, default=0.0)
    for row in rows:
        row["share"] = 100 * row["seconds"] / longest if row["seconds"] and longest else 0.0
    return {
        "rows": rows,
        "total": {**total, "memory": memory, "unknown": len(rows) - len(known)},
        "text": {
            "seconds": duration(total["seconds"]),
            "tokens": amount(total["tokens"]),
            "memory": size(memory),
        },
    }


def _cost(artifact: Artifact) -> dict[str, Any]:
    last = _last_metrics(artifact)
    sources = (artifact.summary, artifact.manifest, last)
    tokens = first_number(sources, TOKENS)
    peak = first_number(sources, MEMORY)
    memory = None if peak is None else peak * 2**20
    speed = first_number(sources, SPEED)
    spent = first_number((artifact.summary, last), ("seconds",)) or artifact.seconds
    if speed is None and tokens and spent:
        speed = tokens / spent
    return {
        "step": artifact.name,
        "kind": artifact.kind,
        "method": method_of(artifact),
        "seconds": artifact.seconds,
        "resumed": artifact.manifest.get("resumed") or 0,
        "tokens": tokens,
        "tokens_per_second": speed,
        "memory": memory,
        "text": {
            "seconds": duration(artifact.seconds),
            "tokens": amount(tokens),
            "tokens_per_second": amount(speed),
            "memory": size(memory),
        },
    }


def _last_metrics(artifact: Artifact) -> dict[str, Any]:
    """The last value of each field of the training lines."""
    last: dict[str, Any] = {}
    for line in read_lines(artifact.folder / "metrics.jsonl"):
        if line.get("split", "train") == "train":
            last.update(line)
    return last


def data_table(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """For each step that took rows in: how many it kept, held out, rejected, left out, and why; licences."""
    tables = []
    for artifact in artifacts:
        kept, held = count_rows(artifact, "rows.jsonl"), count_rows(artifact, "heldout.jsonl")
        rejected, left_out = _losses(artifact)
        told = artifact.summary.get("rows")
        rows = sum(kept.kinds.values()) or (told.get("kept") if isinstance(told, dict) else None)
        if rows or rejected or left_out:
            tables.append(
                {
                    "step": artifact.name,
                    "rows": rows,
                    "kinds": dict(kept.kinds),
                    "heldout": sum(held.kinds.values()),
                    "rejected": sum(rejected.values()),
                    "reasons": dict(rejected.most_common()),
                    "left_out": sum(left_out.values()),
                    "choices": dict(left_out.most_common()),
                    "licences": dict(kept.licences.most_common()),
                }
            )
    return tables


@dataclass
class _Rows:
    kinds: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)


def count_rows(artifact: Artifact, name: str) -> _Rows:
    """Kinds and licences of the rows in one of its files."""
    found = _Rows()
    for row in read_lines(artifact.folder / name):
        provenance = row.get("provenance")
        licence = provenance.get("licence") if isinstance(provenance, dict) else None
        found.kinds[str(row.get("kind") or "unknown")] += 1
        found.licences[str(licence or "not stated")] += 1
    return found


def _losses(artifact: Artifact) -> tuple[Counter[str], Counter[str]]:
    """Reasons of rows that could not be used, and of those left out by choice.

    The step's own account where its summary has one; else all of `rejected.jsonl` counts as rejected.
    """
    summary = artifact.summary
    if isinstance(summary.get("rejected"), dict):
        return _reasons(summary["rejected"]), _reasons(summary.get("left_out"))
    if isinstance(summary.get("rows"), dict):
        return _reasons(summary["rows"]), Counter()
    return Counter(_reason(line) for line in read_lines(artifact.folder / "rejected.jsonl")), Counter()


def _reasons(account: Any) -> Counter[str]:
    reasons = account.get("reasons") if isinstance(account, dict) else None
    known = reasons.items() if isinstance(reasons, dict) else ()
    return Counter({str(reason): count for reason, count in known if isinstance(count, int)})


def _reason(rejected: dict[str, Any]) -> str:
    """Field and kind of a rejection; what follows a colon is about the single row."""
    kind = str(rejected.get("reason") or "no reason given").partition(":")[0].partition(" at position")[0]
    return f"field '{rejected['field']}': {kind}" if rejected.get("field") else kind
