"""Names to things: an explicit dict, an entry point of an installed package, or a dotted path
`pkg.module:Thing`, also of a file in the current folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.common.own_code import load_dotted


def resolve(kind: str, name: str, builtin: Mapping[str, Any]) -> Any:
    """Find `name` among `builtin`, then the entry points of group `posttrain.<kind>`, then as a dotted path.

    kind: plural noun of the registry ("methods", "sources", "judges", "tasks").
    Raises ConfigError with the nearest known name.
    """
    if name in builtin:
        return builtin[name]
    points = {point.name: point for point in entry_points(group=f"posttrain.{kind}")}
    if name in points:
        return points[name].load()
    if ":" in name:
        return load_dotted(name, f"{kind[:-1]} '{name}'")
    raise ConfigError(f"no {kind[:-1]} named '{name}': {nearest(name, known(kind, builtin))}")


def known(kind: str, builtin: Mapping[str, Any]) -> list[str]:
    """Every name that `resolve` finds without a dotted path."""
    return sorted({*builtin, *(point.name for point in entry_points(group=f"posttrain.{kind}"))})
