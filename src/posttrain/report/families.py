"""Which models of an evaluation are runs of one step that differ in the seed alone, and what made each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.report.collect import Artifact


def families(summary: dict[str, Any], artifacts: Sequence[Artifact]) -> dict[str, list[str]]:
    """{name: models}, in the order of the evaluation.

    Variants of one step (`ppo.s0`, `ppo.s1`) go under its name where their configs differ in the seed alone,
    or are not known; a variant of which anything else differs stands for itself.
    """
    signs = {model["name"]: _signature(model, artifacts) for model in summary["models"]}
    steps: dict[str, list[str]] = {}
    for name in signs:
        steps.setdefault(name.rpartition(".")[0] or name, []).append(name)
    found: dict[str, list[str]] = {}
    for name in signs:
        step = name.rpartition(".")[0] or name
        alike = len({signs[other] for other in steps[step]}) == 1
        found.setdefault(step if alike and len(steps[step]) > 1 else name, []).append(name)
    return found


def _signature(model: dict[str, Any], artifacts: Sequence[Artifact]) -> str:
    """All that determined the model but the seed; "" where that is not known."""
    artifact = made_by(model["path"], artifacts)
    if artifact is None or artifact.kind != "train":
        return ""
    config = {key: value for key, value in artifact.config.items() if key != "seed"}
    return json.dumps(config, sort_keys=True, default=str)


def made_by(path: str, artifacts: Sequence[Artifact]) -> Artifact | None:
    """The artifact that lay at `path`; where the store has moved, its folder's name, with its key, tells."""
    place = Path(path).resolve()
    for artifact in artifacts:
        if artifact.folder == place:
            return artifact
    named = [artifact for artifact in artifacts if artifact.key and artifact.folder.name == place.name]
    return named[0] if len(named) == 1 else None


def input_of(artifact: Artifact, ref: Any, artifacts: Sequence[Artifact]) -> Artifact | None:
    """The artifact that a reference in its config (`@step`, `@step/file`, or a model's `path`) names."""
    ref = ref.get("path") if isinstance(ref, dict) else ref
    inputs = artifact.manifest.get("inputs")
    if not isinstance(ref, str) or not isinstance(inputs, dict):
        return None
    entry = inputs.get(ref) or inputs.get(ref.partition("/")[0])
    path = entry.get("path") if isinstance(entry, dict) else None
    return made_by(str(artifact.folder / path), artifacts) if isinstance(path, str) else None
