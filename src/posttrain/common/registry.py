"""Names to things: an explicit dict, an entry point of an installed package, or a dotted path
`pkg.module:Thing`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError


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
        return _dotted(kind, name)
    raise ConfigError(f"no {kind[:-1]} named '{name}': {nearest(name, known(kind, builtin))}")


def known(kind: str, builtin: Mapping[str, Any]) -> list[str]:
    """Every name that `resolve` finds without a dotted path."""
    return sorted({*builtin, *(point.name for point in entry_points(group=f"posttrain.{kind}"))})


def _dotted(kind: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"{kind[:-1]} '{name}' cannot be imported: {e}") from e
