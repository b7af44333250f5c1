"""The ablation table beside the page, for machines: `ablation.json`, and `ablation.csv`, a line a cell."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.common.files import atomic, write_json

_ENDS = ("mean", "low", "high")
_FIELDS = (
    *("evaluation", "task", "metric", "group", "column", "baseline"),
    *_ENDS,
    *("n", "clusters", "missing"),
    *("difference", "difference_low", "difference_high", "verdict", "best"),
)


def write_tables(out: Path, tables: Sequence[dict[str, Any]]) -> None:
    """What has no value is null in the one and empty in the other."""
    write_json(out / "ablation.json", {"tables": list(tables)})
    with atomic(out / "ablation.csv") as f:
        writer = csv.DictWriter(f, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_lines(tables))


def _lines(tables: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for table in tables:
        for row in table["rows"]:
            for cell in row["cells"]:
                value, against = cell.get("value") or {}, cell.get("against") or {}
                yield {
                    "evaluation": table["evaluation"],
                    "baseline": table["baseline"],
                    **{name: row[name] for name in ("task", "metric", "group")},
                    **{name: value.get(name) for name in (*_ENDS, "n", "clusters", "missing")},
                    "difference": against.get("mean"),
                    "difference_low": against.get("low"),
                    "difference_high": against.get("high"),
                    **{name: cell[name] for name in ("column", "verdict", "best")},
                }
