"""Content hashes of files and folders; those of big files are remembered by path, size, time and inode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from posttrain.common.errors import DataError
from posttrain.common.files import sha256_file

BIG = 1 << 20
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Content:
    """sha256: of a file's bytes, or a folder's names and bytes. stamp: changes when the content may have."""

    sha256: str
    stamp: str


def stamp(path: Path) -> str:
    """Sizes, times and inodes of a file or of all files of a folder: cheap, and different after a change."""
    files = folder_files(path) if path.is_dir() else [path]
    parts = [f"{file.relative_to(path)}:{_stat(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted; hidden ones (a name with a dot in front) and manifests left out."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in files if not name.startswith(".") and name != "manifest.json"]
    return sorted(found)


class Hasher:
    """Hashes content. cache: a folder to remember the hashes of big files in, or None.

    A remembered hash is trusted only for the same path, size, times of modification and change, and inode.
    Only a file left alone for two seconds is remembered: no change within the clock's grain is missed.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache

    def content(self, path: Path) -> Content:
        """Hash a file, or a folder as the sorted names and hashes of its files.

        Raises DataError where it cannot be read, changes while it is read, or is a folder without files.
        """
        try:
            before = stamp(path)
            digest = self._folder(path) if path.is_dir() else self._file(path)
            after = stamp(path)
        except OSError as e:
            raise DataError(f"{path} cannot be read: {e.strerror or e} ({e.filename})") from e
        if after != before:
            raise DataError(f"{path} changed while it was read; run again once nothing writes to it")
        return Content(digest, before)

    def _folder(self, folder: Path) -> str:
        files = folder_files(folder)
        if not files:
            raise DataError(f"{folder} is an empty folder")
        listing = [[str(file.relative_to(folder)), self._file(file)] for file in files]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def _file(self, path: Path) -> str:
        entry = self._entry(path)
        found = path.stat()
        state = f"{_stat(path)}:{found.st_ctime_ns}"
        settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED_NS
        if entry is not None:
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(entry.read_text("utf-8"))
                if known[:2] == [str(path.resolve()), state] and len(known[2]) == 64:
                    return str(known[2])
        digest = sha256_file(path)
        if entry is not None and settled:
            _remember(entry, [str(path.resolve()), state, digest])
        return digest

    def _entry(self, path: Path) -> Path | None:
        if self.cache is None or path.stat().st_size < BIG:
            return None
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        return self.cache / f"{name[:32]}.json"


def _remember(entry: Path, known: list[str]) -> None:
    """A lost entry costs one more reading, so nothing is synced and a full disk is no error."""
    part = entry.with_suffix(f".{os.getpid()}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known), "utf-8")
        os.replace(part, entry)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _stat(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"
