"""The store: one folder an artifact, found by its key; locks that die with their process; a log of runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full, no_room
from posttrain.common.manifest import NAME, read_manifest
from posttrain.flow.hashing import Hasher

KEY_DIGITS = 16


class Store:
    """A folder of artifacts, shared by any number of runs.

    root: holds `<step>-<16 digits of the key>/`, `runs.jsonl`, and hidden folders of locks and known hashes.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    @property
    def hasher(self) -> Hasher:
        return Hasher(self.root / ".hashes")

    def folder(self, step: str, key: str) -> Path:
        """Where the artifact of `step` goes if the store has none with this key yet."""
        return self.root / f"{step}-{key[:KEY_DIGITS]}"

    def find(self, key: str) -> Path | None:
        """The whole artifact with this key, whatever its step was called; None where there is none.

        Raises StoreError where its manifest is damaged.
        """
        for folder in self._folders(key):
            if (folder / NAME).exists() and read_manifest(folder).get("key") == key:
                return folder
        return None

    def partial(self, key: str) -> Path | None:
        """The folder that a run of this key left unfinished."""
        return next((folder for folder in self._folders(key) if not (folder / NAME).exists()), None)

    def _folders(self, key: str) -> list[Path]:
        return sorted(path for path in self.root.glob(f"*-{key[:KEY_DIGITS]}") if path.is_dir())

    def folders(self) -> list[Path]:
        """Every folder that is, or was to become, an artifact."""
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def manifests(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every whole artifact with its manifest; damaged ones are passed over (`verify` names them)."""
        found = []
        for folder in self.folders():
            with contextlib.suppress(StoreError):
                found.append((folder, read_manifest(folder)))
        return found

    @contextlib.contextmanager
    def lock(self, key: str, step: str, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the key against every other run that shares the store; waits, and says for whom."""
        with hold(self._lock(key), step, say):
            yield

    def _lock(self, key: str) -> Path:
        return self.root / ".locks" / f"{key[:KEY_DIGITS]}.lock"

    def running(self, key: str) -> str:
        """Who makes the artifact of this key at this moment, in words; "" where nobody does."""
        return holder(self._lock(key))

    def log(self, event: dict[str, Any]) -> None:
        """Append a line to `runs.jsonl`. Raises StoreError where it cannot be written."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        path = self.root / "runs.jsonl"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with open(path, "ab+") as f:
                if f.seek(0, os.SEEK_END):
                    f.seek(-1, os.SEEK_END)
                    line = line if f.read(1) == b"\n" else "\n" + line
                f.write(line.encode())
        except OSError as e:
            number = no_room(e)
            plain = f"cannot write {path}: {e.strerror or e}"
            raise StoreError(plain if number is None else disk_full(path, number)) from e

    def events(self) -> list[dict[str, Any]]:
        """The lines of `runs.jsonl`, without those that a full disk or a kill cut off."""
        events = []
        with contextlib.suppress(FileNotFoundError), open(self.root / "runs.jsonl", encoding="utf-8") as f:
            for line in f:
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
        return events


@contextlib.contextmanager
def hold(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file at `path`. The system lets go of it when the process ends, however it ends.

    what: told to those who wait. Raises StoreError where the file cannot be made.
    """
    holder = path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for {_told(holder)}")
            lock.acquire(poll_interval=0.2)
    except OSError as e:
        raise StoreError(f"cannot lock {path}: {e.strerror or e}") from e
    try:
        _tell(holder, what)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str:
    """Who holds the lock file at `path`, in words; "" where nobody does."""
    if not path.with_suffix(".json").exists():
        return ""
    try:
        with FileLock(path).acquire(timeout=0):  # the note of a process that was killed
            return ""
    except Timeout:
        return _told(path.with_suffix(".json"))
    except OSError:
        return ""


def _tell(holder: Path, what: str) -> None:
    """Who holds the lock, for those who wait: a courtesy, so a full disk is no reason to stop."""
    with contextlib.suppress(OSError):
        holder.write_text(
            json.dumps({"step": what, "pid": os.getpid(), "host": socket.gethostname()}), "utf-8"
        )


def _told(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text("utf-8"))
        return f"process {who['pid']} on {who['host']}, which is making '{who['step']}'"
    except (OSError, ValueError, KeyError):
        return "another run that is making the same"
