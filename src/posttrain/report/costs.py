"""What each step cost, where its rows came from, and what it was made of: read from the manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from posttrain.report.collect import Artifact, first_number, read_lines
from posttrain.report.curves import method_of
from posttrain.report.text import amount, duration, size

TOKENS = ("tokens", "trained_tokens", "tokens_generated", "generated_tokens", "sampled_tokens")
SPEED = ("tokens_per_second", "tokens_per_s")
MEMORY = ("peak_memory_bytes", "peak_memory", "memory_bytes")


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
    memory = first_number(sources, MEMORY)
    speed = first_number(sources, SPEED)
    spent = first_number((artifact.summary, last), ("seconds",)) or artifact.seconds
    if speed is None and tokens and spent:
        speed = tokens / spent
    return {
        "step": artifact.name,
        "kind": artifact.kind,
        "method": method_of(artifact),
        "seconds": artifact.seconds,
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
    """For each artifact with rows: how many were kept, held out, rejected and why, and their licences."""
    tables = []
    for artifact in artifacts:
        kinds, licences = _count_rows(artifact, "rows.jsonl")
        heldout, _ = _count_rows(artifact, "heldout.jsonl")
        reasons = Counter(_reason(line) for line in read_lines(artifact.folder / "rejected.jsonl"))
        if kinds or reasons:
            tables.append(
                {
                    "step": artifact.name,
                    "rows": sum(kinds.values()),
                    "kinds": dict(kinds),
                    "heldout": sum(heldout.values()),
                    "rejected": sum(reasons.values()),
                    "reasons": dict(reasons.most_common()),
                    "licences": dict(licences.most_common()),
                }
            )
    return tables


def _reason(rejected: dict[str, Any]) -> str:
    """Field and kind of a rejection; what follows a colon is about the single row."""
    kind = str(rejected.get("reason") or "no reason given").partition(":")[0].partition(" at position")[0]
    return f"{rejected['field']}: {kind}" if rejected.get("field") else kind


def _count_rows(artifact: Artifact, name: str) -> tuple[Counter[str], Counter[str]]:
    kinds: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    for row in read_lines(artifact.folder / name):
        provenance = row.get("provenance")
        licence = provenance.get("licence") if isinstance(provenance, dict) else None
        kinds[str(row.get("kind") or "unknown")] += 1
        licences[str(licence or "not stated")] += 1
    return kinds, licences
