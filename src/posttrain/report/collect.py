"""The artifacts a report is about: those given, and through their manifests all they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.common.errors import DataError
from posttrain.common.manifest import NAME, ancestry, parents


@dataclass(frozen=True)
class Artifact:
    """A finished step as the page needs it. `manifest` may be empty: a folder written without one."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def kind(self) -> str:
        """The verb that made it; where no manifest says so, what its files look like."""
        told = self.manifest.get("kind")
        if isinstance(told, str) and told:
            return told
        if (self.folder / "summary.json").is_file():
            return "evaluate"
        return "train" if (self.folder / "metrics.jsonl").is_file() else "rows"

    @cached_property
    def name(self) -> str:
        for field in ("step", "name", "label"):
            told = self.manifest.get(field)
            if isinstance(told, str) and told:
                return told
        suffix = f"-{self.key}" if self.key else ""
        return self.folder.name.removesuffix(suffix) if suffix else self.folder.name

    @property
    def key(self) -> str:
        return str(self.manifest.get("key") or "")

    @property
    def config(self) -> dict[str, Any]:
        return _mapping(self.manifest.get("config"))

    @property
    def summary(self) -> dict[str, Any]:
        return _mapping(self.manifest.get("summary"))

    @property
    def seconds(self) -> float | None:
        return number(self.manifest.get("seconds"))

    @cached_property
    def parents(self) -> list[Path]:
        return parents(self.folder, {"inputs": _mapping(self.manifest.get("inputs"))})


def collect(inputs: Sequence[str | Path]) -> list[Artifact]:
    """Every artifact behind `inputs`, each once, what was made earlier first.

    An input is an artifact's folder, or a file or folder inside one. Raises DataError for one that is not
    there.
    """
    folders = [_artifact_of(Path(given)) for given in inputs]
    found = {folder: Artifact(folder, manifest) for folder, manifest in ancestry(folders)}
    for folder in folders:
        found.setdefault(folder, Artifact(folder, {}))
    return list(found.values())


def _artifact_of(given: Path) -> Path:
    if not given.exists():
        raise DataError(f"{given}: no such file or folder; give the folder of a finished step")
    path = given.resolve()
    for folder in (path, path.parent):
        if (folder / NAME).is_file():
            return folder
    return path if path.is_dir() else path.parent


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, none where there is no file. Raises DataError naming a broken line."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as f:
        for count, line in enumerate(f, start=1):
            try:
                value = json.loads(line)
            except ValueError as e:
                raise DataError(
                    f"{path}:{count}: not JSON ({e}); run the step that writes it again"
                ) from None
            if not isinstance(value, dict):
                raise DataError(f"{path}:{count}: expected an object, got {type(value).__name__}")
            yield value


def read_summary(artifact: Artifact) -> dict[str, Any]:
    """The `summary.json` of an evaluation. Raises DataError where it is damaged."""
    path = artifact.folder / "summary.json"
    try:
        return _mapping(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); run step '{artifact.name}' again") from e


def number(value: Any) -> float | None:
    """The value if it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def first_number(sources: Iterable[dict[str, Any]], names: Sequence[str]) -> float | None:
    """The first of `names` that is a number in the first of `sources` to have one."""
    for source in sources:
        for name in names:
            found = number(source.get(name))
            if found is not None:
                return found
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
