"""Folders are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full, no_room, sync_folder


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` to write into; on success it is flushed to disk and takes the name.

    Leftovers of killed writers of the same folder are removed. Raises StoreError where there is no room on
    the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{folder.name}.", ".tmp"
    for leftover in folder.parent.glob(f"{prefix}*{suffix}"):
        shutil.rmtree(leftover, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=suffix))
    try:
        yield draft
        _flush(draft)
        draft.chmod(0o755)
        _replace(draft, folder)
    except BaseException as e:
        shutil.rmtree(draft, ignore_errors=True)
        if (number := no_room(e)) is not None:
            raise StoreError(disk_full(folder, number)) from e
        raise


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as f:
                os.fsync(f.fileno())


def _replace(draft: Path, folder: Path) -> None:
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        os.rename(folder, old / "old")
        os.rename(draft, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(draft, folder)
    sync_folder(folder.parent)
