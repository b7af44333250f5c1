"""Rows on their way from reading to writing: on the disk, with what decides about them in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from posttrain.common.files import atomic
from posttrain.formats.write import line_of
from posttrain.records import Document, Prompt, Row, prompt_key, row_id


@dataclass(frozen=True, slots=True)
class Entry:
    """One row in the spool.

    group: what is asked; rows of one group stay on one side of a split.
    prompt, response: lengths in characters.
    """

    offset: int
    size: int
    group: str
    kind: str
    source: str
    licence: str
    prompt: int
    response: int


class Spool:
    """Lines of records in a file of their own, in the order they came."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.entries: list[Entry] = []
        self._file = open(path, "w+b")  # noqa: SIM115  (closed by __exit__)
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def add(self, row: Row, source: str) -> None:
        line = line_of(row)
        self._file.write(line)
        prompt, response = lengths(row)
        self.entries.append(
            Entry(
                offset=self._end,
                size=len(line),
                group=group_of(row),
                kind=row.kind,  # type: ignore[attr-defined]
                source=source,
                licence=row.provenance.licence,
                prompt=prompt,
                response=response,
            )
        )
        self._end += len(line)

    def write(self, path: Path, entries: Iterable[Entry]) -> None:
        """Write the lines of `entries`, in their order, whole or not at all."""
        self._file.flush()
        with atomic(path, "wb") as out:
            for entry in entries:
                self._file.seek(entry.offset)
                out.write(self._file.read(entry.size))


def group_of(row: Row) -> str:
    """The key that decides on which side of a split a row stands: its prompt, or for a document its words."""
    if isinstance(row, Document):
        return row_id(row.text)
    return prompt_key(row if isinstance(row, Prompt) else row.prompt)  # type: ignore[attr-defined]


def lengths(row: Row) -> tuple[int, int]:
    """Characters of the prompt, and of the longest response; a document has no prompt."""
    if isinstance(row, Document):
        return 0, len(row.text)
    prompt = row if isinstance(row, Prompt) else row.prompt  # type: ignore[attr-defined]
    answers = [getattr(row, name, None) for name in ("response", "chosen", "rejected")]
    texts = [answer.text for answer in (*answers, *getattr(row, "responses", ())) if answer is not None]
    return sum(len(turn.text) for turn in prompt.messages), max(map(len, texts), default=0)


# Who made a row and what it was measured with does not make it another row.
_BESIDE = {"provenance", "tags"}
_MEASURED = {"logps", "model_logps", "finish"}
_NOT_CONTENT: Any = {
    "provenance": True,
    "tags": True,
    "prompt": _BESIDE,
    "response": _MEASURED,
    "chosen": _MEASURED,
    "rejected": _MEASURED,
    "responses": {"__all__": _MEASURED},
}


def content_key(row: Row) -> bytes:
    """16 bytes that two rows share exactly where all that can be trained on is the same."""
    return hashlib.blake2b(row.model_dump_json(exclude=_NOT_CONTENT).encode(), digest_size=16).digest()
