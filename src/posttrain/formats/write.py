"""Writing records: JSON lines or Parquet, whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from posttrain.common.errors import DataError
from posttrain.common.files import atomic
from posttrain.formats.parquet import write_parquet
from posttrain.records import Row


def write_records(path: Path | str, rows: Iterable[Row]) -> int:
    """Write rows to `path` (.jsonl, .jsonl.gz, .parquet), return their number. Reading gives equal rows back.

    Raises DataError for another ending or a row that UTF-8 cannot hold; StoreError where the disk is full.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise DataError(f"{path}: records are written as .jsonl, .jsonl.gz or .parquet")
    with atomic(path, "wb") as f:
        if name.endswith(".parquet"):
            return write_parquet(f, rows)
        if name.endswith(".jsonl"):
            return _write_lines(f, rows)
        # no name and no time in the header: the same rows give the same bytes
        with gzip.GzipFile(filename="", fileobj=f, mode="wb", mtime=0) as packed:
            return _write_lines(packed, rows)  # type: ignore[arg-type]


def _write_lines(f: IO[bytes], rows: Iterable[Row]) -> int:
    written = 0
    for row in rows:
        f.write(line_of(row))
        written += 1
    return written


def line_of(row: Row) -> bytes:
    """One record as one line of JSON."""
    try:
        return row.model_dump_json().encode() + b"\n"
    except ValueError as e:
        raise DataError(f"row {row.provenance.id}: cannot be written as UTF-8 ({e})") from e
