"""Which rows of a data set are kept: a limit, a split by prompt, an order."""

from __future__ import annotations

import hashlib
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.common.errors import DataError
from posttrain.prompts.spool import Entry


@dataclass(frozen=True)
class Picked:
    """The rows of both sides of a split, in the order in which they are written."""

    kept: list[Entry]
    heldout: list[Entry]

    def describe(self) -> dict[str, Any]:
        """Counts by kind, source and licence, of both sides; prompts, and lengths in characters."""
        rows = [*self.kept, *self.heldout]
        return {
            "prompts": len({row.group for row in rows}),
            "kinds": dict(Counter(row.kind for row in rows).most_common()),
            "sources": dict(Counter(row.source for row in rows).most_common()),
            "licences": dict(Counter(row.licence or "unknown" for row in rows).most_common()),
            "prompt_chars": _spread([row.prompt for row in rows]),
            "response_chars": _spread([row.response for row in rows]),
        }


def pick(
    entries: Sequence[Entry],
    *,
    limit: int | None,
    take: str,
    holdout: float | int | None,
    shuffle: bool,
    seed: int,
) -> Picked:
    """Limit, then split by group, then order (CurateConfig says how). Equal arguments give equal results.

    Raises DataError where a side of the split would be empty.
    """
    rows = _limited(entries, limit, take, seed)
    out = _held_out(rows, holdout, seed) if holdout is not None else set()
    kept = [row for row in rows if row.group not in out]
    heldout = [row for row in rows if row.group in out]
    if holdout is not None and not (kept and heldout):
        groups = len({row.group for row in rows})
        raise DataError(
            f"holdout: {holdout} of {len(rows)} rows with {groups} different prompts leaves {len(kept)} rows "
            f"and {len(heldout)} held out; give another share, or a number of rows"
        )
    if shuffle:
        random.Random(seed).shuffle(kept)
    return Picked(kept, heldout)


def _limited(entries: Sequence[Entry], limit: int | None, take: str, seed: int) -> list[Entry]:
    if limit is None or limit >= len(entries):
        return list(entries)
    if take == "head":
        return list(entries[:limit])
    return [entries[i] for i in sorted(random.Random(seed).sample(range(len(entries)), limit))]


def _held_out(rows: Sequence[Entry], holdout: float | int, seed: int) -> set[str]:
    """The groups that are held out."""
    if isinstance(holdout, float):
        return {row.group for row in rows if place(row.group, seed) < holdout}
    sizes = Counter(row.group for row in rows)
    out: set[str] = set()
    held = 0
    for group in sorted(sizes, key=lambda group: place(group, seed)):
        if held >= holdout:
            break
        out.add(group)
        held += sizes[group]
    return out


def place(group: str, seed: int) -> float:
    """A number in [0, 1) for a group, the same in every run and whatever else is there."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:7]) / 2**56


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {
        "min": min(values),
        "median": statistics.median(values),
        "mean": round(statistics.fmean(values), 1),
        "max": max(values),
    }
