"""Which rows have which n-grams, kept on the disk: a new evaluation set is looked up in the rows that are
known, and only new rows are read for their words.

A segment holds the rows that were new in one run: `hashes.npy` [G] ascending, `rows.npy` [G] the index of the
row of each, `keys.npy` [R, 16] the keys of the rows.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full, no_room, sync_folder, write_json
from posttrain.prompts.ngrams import Hashes, Ints

_FULL = 8_000_000  # n-grams held in memory before they become a segment: 96 MB
_FILES = ("hashes.npy", "rows.npy", "keys.npy")
_SEAL = "seal.json"


def row_key(line: bytes) -> bytes:
    """What a row is known by: its line, to the byte."""
    return xxhash.xxh3_128_digest(line)


class RowIndex:
    """folder: of all that is kept, made where it is missing; None keeps nothing. Use as a context manager.

    known: keys of the rows that are there. Two processes may add to one folder at a time.
    """

    def __init__(self, folder: Path | None, label: str) -> None:
        self.folder = folder
        self.known: set[bytes] = set()
        self._segments: list[_Segment] = []
        self._grams: list[tuple[Hashes, Ints]] = []
        self._keys: list[bytes] = []
        self._held = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("segment-*")):
                self._open(path, label)

    def __enter__(self) -> RowIndex:
        return self

    def __exit__(self, kind: Any, e: BaseException | None, trace: Any) -> None:
        if e is None:
            self.keep()

    def sharing(self, hashes: Hashes) -> set[bytes]:
        """The keys of known rows that have one of `hashes` (ascending)."""
        return {key for segment in self._segments for key in segment.sharing(hashes)}

    def add(self, keys: list[bytes], hashes: Hashes, rows: Ints) -> None:
        """Rows that are new. rows: [G], for each of `hashes` [G] the index of its row in `keys`."""
        if self.folder is None:
            return
        self._grams.append((hashes, rows + len(self._keys)))
        self._keys += keys
        self._held += len(hashes)
        if self._held >= _FULL:
            self.keep()

    def keep(self) -> None:
        """Write what was added since as a segment, whole or not at all."""
        if self.folder is None or not self._keys:
            return
        hashes = np.concatenate([some for some, _ in self._grams])
        rows = np.concatenate([some for _, some in self._grams]).astype(np.uint32)
        order = np.argsort(hashes, kind="stable")
        keys = np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 16)
        _write(self.folder, (hashes[order], rows[order], keys))
        self._grams, self._keys, self._held = [], [], 0

    def _open(self, path: Path, label: str) -> None:
        segment = _Segment.read(path)
        if segment is None:
            print(f"{label}: {path} is damaged; it is deleted, its rows are read again", file=sys.stderr)
            shutil.rmtree(path, ignore_errors=True)
            return
        self._segments.append(segment)
        self.known.update(segment.all_keys())


class _Segment:
    def __init__(self, hashes: Hashes, rows: NDArray[np.uint32], keys: NDArray[np.uint8]) -> None:
        self.hashes, self.rows, self.keys = hashes, rows, keys

    @classmethod
    def read(cls, path: Path) -> _Segment | None:
        """The segment, its arrays left on the disk; None where it is not what was written."""
        try:
            seal = json.loads((path / _SEAL).read_text("utf-8"))
            if seal != {name: _digest(path / name) for name in _FILES}:
                return None
            return cls(*(np.load(path / name, mmap_mode="r", allow_pickle=False) for name in _FILES))
        except (OSError, ValueError):
            return None

    def all_keys(self) -> list[bytes]:
        flat = self.keys.tobytes()
        return [flat[i : i + 16] for i in range(0, len(flat), 16)]

    def sharing(self, hashes: Hashes) -> list[bytes]:
        low = np.searchsorted(self.hashes, hashes)
        high = np.searchsorted(self.hashes, hashes, "right")
        hit = np.flatnonzero(high > low)
        rows = {int(row) for i in hit for row in self.rows[low[i] : high[i]]}
        return [self.keys[row].tobytes() for row in rows]


def _write(folder: Path, arrays: tuple[NDArray[Any], ...]) -> None:
    made = Path(tempfile.mkdtemp(prefix=".segment-", dir=folder))
    try:
        for name, array in zip(_FILES, arrays, strict=True):
            np.save(made / name, array)
        seal = {name: _digest(made / name) for name in _FILES}
        write_json(made / _SEAL, seal)
        target = folder / f"segment-{xxhash.xxh3_128_hexdigest(''.join(seal.values()).encode())}"
        os.chmod(made, 0o755)
        if not target.exists():  # another run may have added the same rows
            os.rename(made, target)
            sync_folder(folder)
    except OSError as e:
        if (number := no_room(e)) is not None:
            raise StoreError(disk_full(folder, number)) from e
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
