"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from posttrain.common.errors import StoreError

# No room for what is to be written: on the disk, in a quota, under a limit on the size of a file (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path`; on success it is flushed to disk and takes the name, else it is
    removed.

    Raises StoreError where there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, mode, encoding=encoding) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException as e:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if (number := no_room(e)) is not None:
            raise StoreError(disk_full(path, number)) from e
        raise


def no_room(error: BaseException | None) -> int | None:
    """The system's number where an error, or what caused it, is that there was no room to write; else None.

    Libraries have errors of their own, which say so in words alone.
    """
    while isinstance(error, Exception):
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.errno
        for number in _FULL:
            if os.strerror(number) in str(error) or f"(os error {number})" in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def disk_full(path: Path, number: int = errno.ENOSPC) -> str:
    """What to tell of it. number: as `no_room` found it."""
    if number == errno.EFBIG:
        return (
            f"{path} grows larger than a file may be here (`ulimit -f`, or the file system); raise the limit "
            "and run again, finished work is kept"
        )
    return f"no space left on the disk while writing {path}; free some and run again, finished work is kept"


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as f:
        json.dump(value, f, indent=2, ensure_ascii=False, allow_nan=False)
        f.write("\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in chunks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
