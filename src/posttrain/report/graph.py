"""Where everything came from: the steps in order, what each was made of, and an arc diagram of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from posttrain.report.collect import Artifact

ROW = 3.0  # rem; height of one step's row, which the arcs beside it share
LANE = 0.65  # rem between the reaches of two arcs


def provenance(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Steps in the order they were made, with keys, inputs and config; the arcs between them; versions."""
    place = {artifact.folder: i for i, artifact in enumerate(artifacts)}
    edges = [(place[p], i) for i, a in enumerate(artifacts) for p in a.parents if p in place]
    return {
        "steps": [_step(artifact, artifacts, place) for artifact in artifacts],
        "edges": [list(edge) for edge in edges],
        "diagram": _diagram(edges, len(artifacts)),
        "versions": _versions(artifacts),
    }


def _step(artifact: Artifact, artifacts: Sequence[Artifact], place: dict[Any, int]) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "key": artifact.key,
        "inputs": [artifacts[place[p]].name for p in artifact.parents if p in place],
        "made_of": [artifacts[place[p]].name for p in artifact.parents if p in place]
        + [entry["ref"] for entry in _outside(artifact)],
        "outside": _outside(artifact),
        "config": json.dumps(artifact.config, indent=2, ensure_ascii=False, default=str)
        if artifact.config
        else "",
        "finished": str(artifact.manifest.get("finished") or ""),
    }


def _outside(artifact: Artifact) -> list[dict[str, str]]:
    """Inputs that no step made: files with their hashes, hub models with their revisions."""
    inputs = artifact.manifest.get("inputs")
    entries = inputs.items() if isinstance(inputs, dict) else ()
    return [
        {"ref": str(ref), **{str(k): str(v) for k, v in entry.items() if k != "path"}}
        for ref, entry in entries
        if isinstance(entry, dict) and not entry.get("key")
    ]


def _versions(artifacts: Sequence[Artifact]) -> dict[str, list[str]]:
    """Each package with every version that took part, so that a mixture is seen."""
    found: dict[str, list[str]] = {}
    for artifact in artifacts:
        versions = artifact.manifest.get("versions")
        own = {"posttrain": artifact.manifest["posttrain"]} if "posttrain" in artifact.manifest else {}
        for package, version in (own | (versions if isinstance(versions, dict) else {})).items():
            seen = found.setdefault(str(package), [])
            if str(version) not in seen:
                seen.append(str(version))
    return found


def _diagram(edges: Sequence[tuple[int, int]], rows: int) -> dict[str, Any]:
    """Arcs beside the rows, from a step to those made of it; lengths in rem, coordinates in 1/16 rem."""
    reach = {edge: LANE * (edge[1] - edge[0]) ** 0.7 + 0.5 for edge in edges}
    width = max(reach.values(), default=0.5) + 0.6
    x = (width - 0.4) * 16
    arcs = []
    for (start, end), out in reach.items():
        y1, y2 = ((i + 0.5) * ROW * 16 for i in (start, end))
        bend = x - out * 16 * 1.33
        arcs.append(f"M{x:.1f} {y1:.1f}C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {x:.1f} {y2:.1f}")
    return {
        "width": round(width, 3),
        "height": rows * ROW,
        "row": ROW,
        "arcs": arcs,
        "dots": [{"x": round(x, 1), "y": round((i + 0.5) * ROW * 16, 1)} for i in range(rows)],
    }
