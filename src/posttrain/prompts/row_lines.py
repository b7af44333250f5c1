"""Rows beside the lines that are written of them: our own lines go from file to file without being parsed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from posttrain.common.errors import DataError
from posttrain.formats import Rejects, files_of, read_rows
from posttrain.formats.opening import BOM, CUT, cut_off, open_bytes
from posttrain.formats.read import is_own
from posttrain.formats.rejects import row_error
from posttrain.formats.write import line_of
from posttrain.records import ROW, Document, Prompt, Row


@dataclass(frozen=True, slots=True)
class Line:
    """One row as a line of our own records, with its line end. where: the file and line it was read from."""

    text: bytes
    where: str
    made: Row | None = None

    @property
    def row(self) -> Row:
        """Raises DataError for a line that is no record."""
        if self.made is not None:
            return self.made
        try:
            return ROW.validate_json(self.text)
        except ValidationError as e:
            raise DataError(f"{self.where}: {row_error(e)}") from None


def read_lines(path: Path | str, rejects: Rejects) -> Iterator[Line]:
    """Every row of a path (as `read_rows` takes it); what other people's files have that is no row goes to
    `rejects`.
    """
    for file in files_of(path):
        if is_own(file):
            yield from _own(file, rejects)
        else:
            for row in read_rows(file, rejects=rejects):
                yield Line(line_of(row), row.provenance.source, row)


def _own(file: Path, rejects: Rejects) -> Iterator[Line]:
    with open_bytes(file) as (handle, _):
        number = 0
        try:
            for number, line in enumerate(handle, 1):
                line = (line.removeprefix(BOM) if number == 1 else line).strip()
                if line:
                    rejects.kept += 1
                    yield Line(line + b"\n", f"{file}:{number}")
        except CUT as e:
            raise DataError(f"{file}:{number + 1}: {cut_off(e)}") from e


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """(where, text) of everything in a row that is written: turns, then responses; a document's text."""
    if isinstance(row, Document):
        yield "text", row.text
        return
    prompt: Prompt = row if isinstance(row, Prompt) else row.prompt  # type: ignore[attr-defined]
    for i, turn in enumerate(prompt.messages, 1):
        yield f"prompt, turn {i} ({turn.role})", turn.text
    for name in ("response", "chosen", "rejected"):
        if (answer := getattr(row, name, None)) is not None:
            yield name, answer.text
    for i, answer in enumerate(getattr(row, "responses", ()), 1):
        yield f"response {i}", answer.text
