"""Making one artifact in a folder: unfinished until its manifest stands, and then whole."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common.errors import StoreError
from posttrain.common.files import disk_full, no_room, sha256_file, sync_folder, write_json
from posttrain.common.manifest import NAME, read_manifest
from posttrain.common.step import StepContext
from posttrain.common.version import VERSION

STATE = "state"
UNFINISHED = "unfinished.json"


@dataclass(frozen=True)
class Order:
    """What is to be made: everything the manifest will say but the result.

    step: the name in the recipe. inputs: as the manifest lists them.
    check: raises StoreError where an input has changed. cache: what steps of one store share.
    """

    step: str
    kind: str
    version: int
    key: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    run: Callable[[StepContext], dict[str, Any]]
    check: Callable[[], None]
    cache: Path | None = None


def make(folder: Path, order: Order) -> dict[str, Any]:
    """Run the step into `folder`, going on from what a killed run left there, and return the manifest.

    The caller holds the lock of the folder. Whatever happens before the manifest is written leaves a folder
    without one, which no reader takes for an artifact. Raises StoreError where there is no room on the disk.
    """
    state = folder / STATE
    began = time.monotonic()
    try:
        note = _begin(folder, order)
        summary = order.run(StepContext(folder, state, order.step, order.cache))
        seconds = time.monotonic() - began
        _still_same(order, folder)
        manifest = _manifest(folder, order, summary, note, seconds)
        write_json(folder / NAME, manifest)
        tidy(folder)
    except Exception as e:
        if not isinstance(e, StoreError) and (number := no_room(e)) is not None:
            raise StoreError(disk_full(folder, number)) from e
        raise
    return manifest


def _begin(folder: Path, order: Order) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    before = unfinished(folder) or {}
    note = {
        "key": order.key,
        "step": order.step,
        "started": before.get("started") or _now(),
        "resumed": before["resumed"] + 1 if before else 0,
    }
    write_json(folder / UNFINISHED, note)
    (folder / STATE).mkdir(exist_ok=True)
    for leftover in [path for path in folder.rglob(".*") if path.is_file() and is_leftover(path)]:
        leftover.unlink(missing_ok=True)
    return note


def _still_same(order: Order, folder: Path) -> None:
    """Refuse a result whose inputs changed under it, and what could be resumed from them."""
    try:
        order.check()
    except StoreError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _manifest(
    folder: Path, order: Order, summary: Mapping[str, Any], note: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "posttrain": VERSION,
        "step": order.step,
        "kind": order.kind,
        "version": order.version,
        "key": order.key,
        "identity": dict(order.identity),
        "config": dict(order.config),
        "inputs": dict(order.inputs),
        "files": _files(folder),
        "summary": _jsonable(summary),
        "started": note["started"],
        "finished": _now(),
        "seconds": round(seconds, 3),
        "resumed": note["resumed"],
        "versions": _versions(),
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file of the artifact, all flushed to the disk first."""
    listing = {}
    for path in sorted(p for p in folder.rglob("*") if _belongs(p.relative_to(folder))):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as f:
            os.fsync(f.fileno())
        name = path.relative_to(folder).as_posix()
        listing[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    sync_folder(folder)
    return listing


def _belongs(path: Path) -> bool:
    return path.parts[0] not in (STATE, UNFINISHED, NAME)


def tidy(folder: Path) -> None:
    """Remove what only an unfinished artifact needs."""
    shutil.rmtree(folder / STATE, ignore_errors=True)
    (folder / UNFINISHED).unlink(missing_ok=True)


def untidy(folder: Path) -> bool:
    return (folder / STATE).exists() or (folder / UNFINISHED).exists()


def is_leftover(path: Path) -> bool:
    """Whether this is the temporary file of a write that a kill cut short (`common.files.atomic`)."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def set_aside(folder: Path, beside: Path) -> None:
    """Delete a folder so that at no instant half of it is there: it leaves its place by one rename."""
    grave = Path(tempfile.mkdtemp(dir=beside, prefix=f".{folder.name}.", suffix=".tmp"))
    os.rename(folder, grave / folder.name)
    shutil.rmtree(grave)


def unfinished(folder: Path) -> dict[str, Any] | None:
    """What a run that has not finished noted of itself in `folder`; None where there is none, or it is
    damaged.
    """
    try:
        note = json.loads((folder / UNFINISHED).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(note, dict) and isinstance(note.get("resumed"), int)
    return note if whole and all(isinstance(note.get(name), str) for name in ("key", "started")) else None


def check_artifact(folder: Path, full: bool = False) -> dict[str, Any]:
    """The manifest of a whole artifact; sizes are compared, and where `full` the hash of every file.

    Raises StoreError that says what is damaged and what to delete.
    """
    manifest = read_manifest(folder)
    for name, said in manifest["files"].items():
        path = folder / name
        problem = ""
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != said["bytes"]:
            problem = f"has {path.stat().st_size} bytes instead of {said['bytes']}"
        elif full and sha256_file(path) != said["sha256"]:
            problem = "is not what was written (its hash differs)"
        if problem:
            raise StoreError(f"damaged artifact: {path} {problem}; delete the folder {folder} and run again")
    return manifest


def _versions() -> dict[str, str]:
    """Of Python, and of the packages that took part."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "peft", "numpy"):
        if package in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
    return versions


def _jsonable(value: Any) -> Any:
    """Plain data; a number that is none (NaN, infinity) becomes None, the third state."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _jsonable(value.item())
    return str(value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
