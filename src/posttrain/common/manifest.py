"""Reading the manifest of an artifact, and walking back to the artifacts it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.common.errors import StoreError

NAME = "manifest.json"


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of the artifact in `folder`.

    Raises StoreError where there is none (the folder is no artifact, or its step has not finished), or it is
    damaged.
    """
    path = Path(folder) / NAME
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder} has no {NAME}: it is no artifact, or the step that makes it has not finished"
        ) from None
    except ValueError as e:
        raise StoreError(f"{path} is damaged ({e}); delete {folder} and run its step again") from e
    if not isinstance(manifest, dict) or not isinstance(manifest.get("inputs"), dict):
        raise StoreError(
            f"{path} is damaged (no mapping with 'inputs'); delete {folder} and run its step again"
        )
    return manifest


def parents(folder: Path | str, manifest: dict[str, Any]) -> list[Path]:
    """The folders of the artifacts that were inputs of this one, in the order of its config.

    A manifest's `inputs` are {reference: {"key", "path", …}}; `path` is relative to the artifact's folder, so
    that a store can be moved as a whole, or absolute where the input lies elsewhere. An input that is no
    artifact (a file, a hub model) has no key.
    """
    found = [
        (Path(folder) / entry["path"]).resolve() for entry in manifest["inputs"].values() if entry.get("key")
    ]
    return list(dict.fromkeys(found))


def ancestry(folders: Iterable[Path | str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The artifacts in `folders` and all they were made from, each once, what was made earlier first.

    Folders without a manifest are passed over: an input may be a plain folder.
    """
    seen: set[Path] = set()

    def visit(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if folder in seen:
            return
        seen.add(folder)
        if not (folder / NAME).is_file():
            return
        manifest = read_manifest(folder)
        for parent in parents(folder, manifest):
            yield from visit(parent)
        yield folder, manifest

    for folder in folders:
        yield from visit(Path(folder).resolve())
