"""Which of the models asked another was trained from: what a difference should be taken against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from posttrain.common.manifest import NAME, read_manifest


def origins(models: Mapping[str, str]) -> dict[str, str]:
    """{name: the nearest model among `models` that it was trained from}, as the manifests of its steps say.

    models: {name: path}. A model that came from none of the others, or of unknown making, is left out.
    """
    names: dict[Path, str] = {}
    for name, path in models.items():
        names.setdefault(_artifact(Path(path)), name)
    found = {}
    for name, path in models.items():
        folder = _parent(_artifact(Path(path)))
        while folder is not None and folder not in names:
            folder = _parent(folder)
        if folder is not None:
            found[name] = names[folder]
    return found


def _artifact(path: Path) -> Path:
    """The folder of the step that made the model at `path`, or `path` where no step made it."""
    path = path.resolve()
    return path.parent if path.name == "model" and (path.parent / NAME).is_file() else path


def _parent(folder: Path) -> Path | None:
    """The artifact that a step's `model` field names."""
    if not (folder / NAME).is_file():
        return None
    manifest = read_manifest(folder)
    model = manifest.get("config", {}).get("model")
    named = model.get("path") if isinstance(model, Mapping) else model
    entry = manifest["inputs"].get(named) if isinstance(named, str) else None
    return _artifact(folder / entry["path"]) if entry and entry.get("key") else None
