"""Opening files of text: gzip by its magic number, byte-order marks, streams that end before their end."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from posttrain.common.errors import DataError
from posttrain.formats.rejects import RowError

CUT = (EOFError, zlib.error, gzip.BadGzipFile)
BOM = b"\xef\xbb\xbf"


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Open a file, unpacking gzip; also gives a function for the number of its bytes read so far.

    Raises DataError for UTF-16.
    """
    with open(path, "rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
        if magic == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked, raw.tell  # type: ignore[misc]
        else:
            yield raw, raw.tell


def first_bytes(handle: IO[bytes]) -> bytes:
    """The beginning of a stream without a byte-order mark, left unread; empty where it cannot be unpacked."""
    try:
        return handle.peek(4096).removeprefix(BOM).lstrip()  # type: ignore[attr-defined]
    except CUT:
        return b""


def everything(handle: IO[bytes]) -> tuple[bytes, Exception | None]:
    """All that can be read without a byte-order mark, and the error that ended it."""
    parts: list[bytes] = []
    damage: Exception | None = None
    try:
        while part := handle.read1(1 << 20):  # type: ignore[attr-defined]
            parts.append(part)
    except CUT as e:
        damage = e
    return b"".join(parts).removeprefix(BOM), damage


def cut_off(e: Exception) -> RowError:
    """What rejected.jsonl says of a gzip stream that could not be read to its end."""
    if isinstance(e, gzip.BadGzipFile):
        return RowError(
            "", f"a damaged gzip file: {e}; what was read of it may be wrong, fetch the file again"
        )
    return RowError(
        "", f"a gzip file that is cut off: {e}; the rows before the cut were used, fetch it again"
    )
