"""The account of one reading: what was kept, what could not be used and why. Nothing is dropped silently."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import ValidationError

from posttrain.common.errors import DataError
from posttrain.records import KINDS

SHOWN = 1000  # characters of a row that rejected.jsonl repeats


class RowError(ValueError):
    """Why a row, or a part of one, is not used.

    field: the column it is about, as the file calls it; "" for the whole row.
    reason: what was found and what was expected. It opens with its kind and details follow a colon: rows are
        counted by kind.
    by_choice: nothing is wrong with the row; an option, or a rule of its source, leaves it out. Not held
        against the file.
    """

    def __init__(self, field: str, reason: str, by_choice: bool = False) -> None:
        super().__init__(f"field '{field}': {reason}" if field else reason)
        self.field, self.reason, self.by_choice = field, reason, by_choice

    @property
    def kind(self) -> str:
        """The reason without its details: what rows are counted by."""
        opening = self.reason.partition(":")[0].partition(" at position")[0]
        first, *deeper = re.sub(r"\[\d+\]", "[]", self.field).split(".")
        field = f"{first}…{deeper[-1]}" if deeper else first
        return f"'{field}': {opening}" if field else opening


def row_error(error: ValidationError) -> RowError:
    """The first mistake of a failed validation, in the words of a file's reader."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part not in KINDS]
    cause = first.get("ctx", {}).get("error")
    if first["type"] == "missing":
        reason = "is missing"
    elif first["type"] == "json_invalid":
        reason = f"invalid JSON: {cause}"
    elif first["type"] == "extra_forbidden":
        reason = "is no field of this kind of row"
    else:
        reason = str(cause) if cause else f"{first['msg'].lower()}: got {first['input']!r}"[:200]
    return RowError(".".join(parts), reason)


class Rejects:
    """Counts rows and writes the unusable ones to `path` as {file, line, field, reason, row}.

    path: rejected.jsonl; None counts only. strict: the first unusable row is a DataError at once.
    Use as a context manager; `check` is called by the one who knows how many may be rejected.
    """

    def __init__(self, path: Path | None = None, *, strict: bool = False) -> None:
        self.path, self.strict = path, strict
        self.kept = 0
        self.rejected = 0
        self.left_out = 0
        self.reasons: Counter[str] = Counter()
        self.choices: Counter[str] = Counter()
        self.damaged: dict[str, str] = {}  # file -> what is wrong with the file as a whole
        self.formats: dict[str, str] = {}  # file -> the format it was read in
        self.bytes_read = 0
        self._first = ""
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(
        self,
        file: str,
        line: int,
        error: RowError,
        row: Any = None,
        rows: int = 1,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        """Put a row aside. row: as it was found (text, bytes, plain data). rows: how many were lost with it.
        evidence: what else its line in the file says of the reason.

        Raises DataError where the account is strict and the row was not left out by choice.
        """
        if error.by_choice:
            self.left_out += rows
            self.choices[error.kind] += rows
        else:
            if self.strict:
                raise DataError(
                    f"{file}:{line}: {error}; to go on without such rows, read the file with `curate`"
                )
            self.rejected += rows
            self.reasons[error.kind] += rows
            self._first = self._first or f"{file}:{line}: {error}"
        if self._file is not None:
            entry = {
                "file": file,
                "line": line,
                "field": error.field,
                "reason": error.reason,
                **(evidence or {}),
                "row": shown(row),
            }
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add_damage(self, file: str, line: int, error: RowError, rows: int = 1) -> None:
        """A file of which an unknown part is lost: counted as rejected, and remembered by name."""
        self.damaged[file] = str(error)
        self.add(file, line, error, rows=rows)

    def tell(self, label: str) -> None:
        """Say on stderr how many rows are not used and why, where there are any."""
        for file, damage in self.damaged.items():
            print(f"{label}: {file} is damaged: {damage}", file=sys.stderr)
        for count, word, reasons in (
            (self.rejected, "cannot be used", self.reasons),
            (self.left_out, "left out", self.choices),
        ):
            if count:
                top = "; ".join(f"{n:,} × {reason}" for reason, n in reasons.most_common(5))
                print(f"{label}: {count:,} rows {word}: {top}", file=sys.stderr)

    def most(self) -> str:
        """The commonest reasons of unusable rows and how many have each, "" where there is none."""
        return "; ".join(f"{count} × {reason}" for reason, count in self.reasons.most_common(5))

    def check(self, max_rejected: float) -> None:
        """Raise DataError where more than the share `max_rejected` of all rows (0 to 1) was unusable."""
        total = self.kept + self.rejected
        if self.rejected <= max_rejected * total:
            return
        where = f" All of them: {self.path}." if self.path else ""
        raise DataError(
            f"{self.rejected} of {total} rows ({self.rejected / total:.1%}) cannot be used, more than "
            f"max_rejected: {max_rejected} allows: {self.most()}. First: {self._first}.{where} "
            f"Mend the data, or raise max_rejected"
        )


def shown(row: Any) -> str:
    """A row as rejected.jsonl repeats it: text or JSON, what UTF-8 cannot hold escaped, cut to SHOWN."""
    if row is None:
        return ""
    if isinstance(row, bytes):
        text = row[: SHOWN * 4].decode("utf-8", "backslashreplace").rstrip("\r\n")
    elif isinstance(row, str):
        text = row
    else:
        text = json.dumps(row, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… (cut)"
