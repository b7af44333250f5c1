"""What a step is given in place of its references, and what its manifest says of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from posttrain.common.config import Config
from posttrain.common.errors import StoreError
from posttrain.common.manifest import NAME, read_manifest
from posttrain.flow.fingerprint import Outside
from posttrain.flow.hashing import stamp
from posttrain.flow.inputs import Leaf, Pinned, replace_inputs
from posttrain.flow.references import read_reference


def resolve(config: Config, sources: Mapping[str, Path], outside: Mapping[str, Outside]) -> Config:
    """The config as the step sees it: references become paths, hub models exact revisions.

    Raises StoreError where `@step/file` names a file that the artifact does not have.
    """

    def place(leaf: Leaf) -> str | Pinned:
        if leaf.kind is not None and leaf.value in sources:
            reference = read_reference(leaf.value)
            path = sources[leaf.value] / (reference.file if reference else "")
            if not path.exists():
                there = ", ".join(sorted(p.name for p in sources[leaf.value].iterdir() if p.name != NAME))
                raise StoreError(f"{leaf.value}: the artifact has no such file (it has: {there})")
            return str(path)
        return outside[leaf.value].pinned if leaf.kind and leaf.value in outside else leaf.value

    return replace_inputs(config, place)


def describe_outside(outside: Mapping[str, Outside]) -> dict[str, dict[str, str]]:
    """The manifest's entries for inputs from outside the recipe; an artifact among them has its key."""
    entries = {}
    for text, found in outside.items():
        entry = dict(found.identity)
        if found.path is None and "text" in entry:
            continue
        if found.path is None:
            entry = {"kind": "code" if "code" in entry else "hub", **entry}
        else:
            made = artifact_of(found.path)
            entry = {"kind": "path", "sha256": entry["content"], "path": str(made[0] if made else found.path)}
            if made:
                entry["key"] = made[1]
        entries[text] = entry
    return entries


def artifact_of(path: Path) -> tuple[Path, str] | None:
    """The artifact that `path` is, or lies in, with its key."""
    for folder in (path, *list(path.parents)[:2]):
        if (folder / NAME).is_file():
            key = read_manifest(folder).get("key")
            return (folder, str(key)) if key else None
    return None


def check_unchanged(outside: Mapping[str, Outside]) -> None:
    """Raise StoreError where an input's files are no longer those that were hashed."""
    for text, found in outside.items():
        if found.path is None:
            continue
        try:
            same = stamp(found.path) == found.stamp
        except OSError:
            same = False
        if not same:
            raise StoreError(f"{text} changed after its content was read for the key; run again")
