"""Files to plain rows, whatever way they are laid out: JSON, CSV, plain text, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from posttrain.common.errors import DataError
from posttrain.formats.json_rows import json_rows
from posttrain.formats.opening import BOM, CUT, cut_off, everything, first_bytes, open_bytes
from posttrain.formats.parquet import arrow_rows, parquet_rows
from posttrain.formats.rejects import Rejects, RowError

SUFFIXES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as it stands in its file. line: of a text file, or the row's number in Parquet; from 1."""

    file: str
    line: int
    row: dict[str, Any]


def layout_of(path: Path) -> str:
    """How a file is laid out, by its name, or where the name says nothing by its first bytes.

    Raises DataError for a kind of file that cannot be read.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    with open_bytes(path) as (handle, _):
        start = first_bytes(handle)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start[:1] in (b"{", b"["):
        return "json"
    raise DataError(
        f"{path}: not a kind of file that is read here; known are {', '.join(SUFFIXES)} (and .gz)"
    )


def raw_rows(path: Path, rejects: Rejects, separator: str | None = None) -> Iterator[Raw]:
    """Stream the rows of one file; what is no row goes to `rejects`.

    separator: what stands between two documents of a plain text file; None: the file is one document.
    Raises DataError where the file as a whole cannot be read.
    """
    file, layout = str(path), layout_of(path)
    if layout in ("parquet", "arrow"):
        for line, row in (parquet_rows if layout == "parquet" else arrow_rows)(path, rejects):
            yield Raw(file, line, row)
        return
    with open_bytes(path) as (handle, position):
        rows: dict[str, Callable[[], Iterator[tuple[int, dict[str, Any]]]]] = {
            "json": lambda: json_rows(file, handle, rejects),
            "csv": lambda: _cells(file, handle, rejects, ","),
            "tsv": lambda: _cells(file, handle, rejects, "\t"),
            "text": lambda: _documents(file, handle, rejects, separator),
        }
        before = 0
        for line, row in rows[layout]():
            now = position()
            rejects.bytes_read += now - before
            before = now
            yield Raw(file, line, row)


def _cells(
    file: str, handle: IO[bytes], rejects: Rejects, delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # responses are longer than the module's own limit
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as e:
            rejects.add(file, line, RowError("", f"invalid CSV: {e}"))
            continue
        except CUT as e:
            rejects.add_damage(file, line, cut_off(e))
            break
        if cells is None:
            break
        if not header:
            header = _header(file, cells)
        elif len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        elif cells:
            width = f"a row of the wrong width: {len(cells)} cells under {len(header)} columns"
            rejects.add(file, line, RowError("", width), cells)
    text.detach()


def _header(file: str, cells: list[str]) -> list[str]:
    if len(set(cells)) != len(cells) or not all(cells):
        raise DataError(f"{file}:1: the first line must name every column once, got {cells}")
    return cells


def _documents(
    file: str, handle: IO[bytes], rejects: Rejects, separator: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    pieces = _split(file, handle, separator.encode(), rejects) if separator else _whole(file, handle, rejects)
    for line, piece in pieces:
        if not piece.strip():
            continue
        try:
            yield line, {"text": piece.decode("utf-8")}
        except UnicodeDecodeError as e:
            at = line + piece.count(b"\n", 0, e.start)
            rejects.add(file, at, RowError("text", f"not UTF-8: 0x{piece[e.start]:02x} on line {at}"), piece)


def _whole(file: str, handle: IO[bytes], rejects: Rejects) -> Iterator[tuple[int, bytes]]:
    data, damage = everything(handle)
    if damage:
        rejects.add_damage(file, 1 + data.count(b"\n"), cut_off(damage))
    yield 1, data


def _split(file: str, handle: IO[bytes], mark: bytes, rejects: Rejects) -> Iterator[tuple[int, bytes]]:
    """(line, bytes) of each stretch between two marks, holding one block of the file at a time."""
    held, line, block = b"", 1, b"start"
    while block:
        try:
            block = handle.read1(1 << 20)  # type: ignore[attr-defined]
        except CUT as e:
            rejects.add_damage(file, line + held.count(b"\n"), cut_off(e))
            block = b""
        *pieces, held = (held + block).split(mark)
        for piece in pieces:
            yield line, piece.removeprefix(BOM) if line == 1 else piece
            line += (piece + mark).count(b"\n")
    yield line, held.removeprefix(BOM) if line == 1 else held
