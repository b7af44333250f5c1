"""Rows that are left out though nothing is wrong with them: too short, too long, or there already."""

from __future__ import annotations

from posttrain.formats import Rejects, RowError
from posttrain.prompts.spool import content_key, lengths
from posttrain.records import Row


class Filters:
    """Bounds on length, and each row once; what is left out goes to `rejects` with its reason.

    dedupe: keep only the first of rows with the same content.
    min_chars, max_chars: of a row's prompt and longest response together.
    """

    def __init__(self, dedupe: bool, min_chars: int, max_chars: int | None, rejects: Rejects) -> None:
        self.dedupe, self.min_chars, self.max_chars, self.rejects = dedupe, min_chars, max_chars, rejects
        self._seen: dict[bytes, str] = {}
        self._ids: set[str] = set()

    def __call__(self, row: Row) -> Row | None:
        """The row, under an id that no row before it had; None where it is left out."""
        key = content_key(row) if self.dedupe else b""
        reason = self._length(row)
        if not reason and key in self._seen:
            reason = f"a duplicate: the same as row {self._seen[key]}"
        if reason:
            self._leave_out(row, reason)
            return None
        kept = self._with_own_id(row)
        if self.dedupe:
            self._seen[key] = f"{kept.provenance.id} ({kept.provenance.source})"
        return kept

    def _length(self, row: Row) -> str:
        chars = sum(lengths(row))
        if chars < self.min_chars:
            return f"too short: {chars} characters, min_chars is {self.min_chars}"
        if self.max_chars is not None and chars > self.max_chars:
            return f"too long: {chars} characters, max_chars is {self.max_chars}"
        return ""

    def _leave_out(self, row: Row, reason: str) -> None:
        source = row.provenance.source
        file, _, line = source.rpartition(":")
        where = (file, int(line)) if line.isdigit() else (source, 0)
        self.rejects.add(*where, RowError("", reason, by_choice=True), row.model_dump(mode="json"))

    def _with_own_id(self, row: Row) -> Row:
        id, number = row.provenance.id, 1
        while id in self._ids:
            number += 1
            id = f"{row.provenance.id}~{number}"
        self._ids.add(id)
        if number == 1:
            return row
        return row.model_copy(update={"provenance": row.provenance.model_copy(update={"id": id})})
