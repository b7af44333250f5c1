"""Looking after a store: what is in it, whether it is whole, and what may be deleted."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from posttrain.common.errors import StoreError
from posttrain.common.manifest import NAME, ancestry, read_manifest
from posttrain.flow.artifact import check_artifact, is_leftover, set_aside, unfinished
from posttrain.flow.store import KEY_DIGITS, Store

DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """A folder of the store. key, kind: "" where the folder is damaged. finished: None where it is not.

    running: a process makes it at this moment. bytes: on the disk. touched: seconds since the epoch.
    """

    folder: Path
    key: str
    kind: str
    bytes: int
    touched: float
    finished: str | None = None
    seconds: float | None = None
    running: bool = False


def survey(store: Store) -> list[Entry]:
    """Every artifact, whole, unfinished or damaged; the last touched last."""
    entries = [_entry(folder) for folder in store.folders()]
    told = [
        replace(entry, running=not entry.finished and bool(entry.key and store.running(entry.key)))
        for entry in entries
    ]
    return sorted(told, key=lambda entry: entry.touched)


def _entry(folder: Path) -> Entry:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    try:
        if (folder / NAME).exists():
            manifest = read_manifest(folder)
            touched = datetime.datetime.fromisoformat(manifest["finished"]).timestamp()
            said = (str(manifest["key"]), str(manifest["kind"]))
            return Entry(folder, *said, sum(sizes), touched, manifest["finished"], float(manifest["seconds"]))
    except (StoreError, KeyError, TypeError, ValueError):
        return Entry(folder, "", "", sum(sizes), folder.stat().st_mtime)
    note = unfinished(folder) or {}
    return Entry(folder, str(note.get("key", "")), "", sum(sizes), folder.stat().st_mtime)


def verify_all(store: Store) -> tuple[int, list[str]]:
    """How many finished artifacts are whole, every file read; and what is wrong with the others."""
    whole, problems = 0, []
    for folder in store.folders():
        if not (folder / NAME).exists():
            continue
        try:
            check_artifact(folder, full=True)
            whole += 1
        except StoreError as e:
            problems.append(str(e))
    return whole, problems


def garbage(store: Store, days: float, now: float | None = None) -> list[Entry]:
    """What may go: neither used by the latest run of any recipe's step, nor made or used within `days`.

    What an artifact that stays was made from stays too. now: seconds since the epoch, the clock's where None.
    """
    since = (time.time() if now is None else now) - days * DAY
    latest: dict[tuple[str, str], str] = {}
    kept: set[str] = set()
    for event in store.events():
        if event.get("event") == "start":
            latest |= {(event["recipe"], step): key for step, key in event["steps"].items()}
        elif event.get("event") == "step" and _when(event) >= since:
            kept.add(event["key"])
    kept |= set(latest.values())
    entries = survey(store)
    roots = [entry.folder for entry in entries if entry.key in kept or entry.touched >= since]
    spared = {folder for folder, _ in ancestry(roots)} | {folder.resolve() for folder in roots}
    found = [entry for entry in entries if entry.folder.resolve() not in spared]
    return found + _leftovers(store)


def _when(event: dict[str, str]) -> float:
    return datetime.datetime.fromisoformat(event["at"]).timestamp()


def _leftovers(store: Store) -> list[Entry]:
    """Folders that were set aside and, for a kill, not deleted."""
    hidden = store.root.glob(".*.tmp") if store.root.is_dir() else ()
    return [_entry(path) for path in sorted(hidden) if path.is_dir() and is_leftover(path)]


def remove(store: Store, entry: Entry) -> bool:
    """Delete a folder, unless a run holds its key; says whether it is gone."""
    digits = entry.folder.name.rpartition("-")[2] if not entry.key else entry.key[:KEY_DIGITS]
    lock = FileLock(store.root / ".locks" / f"{digits}.lock")
    lock_path = Path(lock.lock_file)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        set_aside(entry.folder, store.root)
    finally:
        lock.release()
    return True
