"""Answers of paid servers on the disk: none is paid for twice, and every step knows what it has spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full

# A write-ahead log outlives the process without a flush to the disk for every answer, which takes longer than
# many a server; a power cut may cost the last answers, and damages nothing.
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS payments (payer TEXT NOT NULL, input INTEGER, output INTEGER);
CREATE INDEX IF NOT EXISTS by_payer ON payments (payer);
"""


@dataclass(frozen=True)
class Spent:
    """What one payer has paid for: answers, their tokens, and how many of them came without a count."""

    answers: int = 0
    input: int = 0
    output: int = 0
    uncounted: int = 0


@final
class ReplyCache:
    """A file that several processes may use at once. An answer is in it, with its price, or is not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self) -> Iterator[OpenCache]:
        """Use the cache within one thread. Raises StoreError where the file is damaged, its folder cannot be
        made, or the disk is full.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as e:
            raise StoreError(
                f"{self.path.parent} is a file where the folder with servers' answers should be; delete it"
            ) from e
        except OSError as e:
            raise StoreError(
                f"{self.path.parent}, in which answers of servers are kept, cannot be made: {e.strerror or e}"
            ) from e
        with self._told():
            connection = sqlite3.connect(self.path, timeout=60)
        try:
            with self._told():
                connection.executescript(_TABLES)
                yield OpenCache(connection)
        finally:
            connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            code = getattr(e, "sqlite_errorcode", 0) & 0xFF  # of an extended code, what it extends
            if code == sqlite3.SQLITE_FULL:
                raise StoreError(disk_full(self.path)) from e
            if code == sqlite3.SQLITE_IOERR:
                raise StoreError(
                    f"{self.path}, which keeps the answers of servers, cannot be read or written: {e}; look "
                    "at the disk, and whether files may grow (`ulimit -f`); answers so far are kept"
                ) from e
            raise StoreError(
                f"{self.path}, which keeps the answers of servers, cannot be used: {e}; mend it, or delete "
                "it and have its answers asked for, and paid for, again"
            ) from e


@final
class OpenCache:
    """A cache between its opening and its closing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> str | None:
        found = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, reply: str, payer: str, input: int | None, output: int | None) -> None:
        """Keep an answer and its price, both or neither. None: the server did not say how many tokens."""
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))
            self._connection.execute("INSERT INTO payments VALUES (?, ?, ?)", (payer, input, output))

    def spent(self, payer: str) -> Spent:
        row = self._connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(input), 0), COALESCE(SUM(output), 0), "
            "COALESCE(SUM(input IS NULL OR output IS NULL), 0) FROM payments WHERE payer = ?",
            (payer,),
        ).fetchone()
        return Spent(*row)
