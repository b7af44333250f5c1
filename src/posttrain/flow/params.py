"""`params:` and `${name}`: values written once, used in many steps, and set from outside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.overrides import Override, set_at
from posttrain.flow.source import Place, Places

_PARAM = re.compile(r"\$\$\{|\$\{([^}]*)\}")


def read_params(given: dict[str, Any], places: Places) -> dict[str, Any]:
    """The values of a `params:` block; each may use those written before it."""
    params: dict[str, Any] = {}
    for name, value in given.items():
        params[name] = fill(value, params, places.under(name))
    return params


def fill(value: Any, params: Mapping[str, Any], places: Places, path: Place = ()) -> Any:
    """Replace `${name}` in every string: a string that is nothing else takes the value with its type.

    Raises ConfigError for an unknown name, or a parameter that was given no value.
    """
    if isinstance(value, dict):
        return {k: fill(inner, params, places, (*path, k)) for k, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, params, places, (*path, str(i))) for i, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def lookup(match: re.Match[str]) -> Any:
        name = match[1]
        if name is None:
            return "${"
        if name not in params:
            hint = nearest(name, list(params)) if params else "the recipe has no params: block before it"
            raise ConfigError(
                f"{places.at(path)}: no parameter '{name}' ({hint}); write $${{ for a plain ${{"
            )
        if params[name] is None:
            raise ConfigError(f"{places.at(path)}: parameter '{name}' has no value: give --set {name}=…")
        return params[name]

    whole = _PARAM.fullmatch(value)
    return lookup(whole) if whole else _PARAM.sub(lambda match: str(lookup(match)), value)


def apply_params(params: dict[str, Any], overrides: list[Override], names: list[str]) -> list[Override]:
    """Set the overrides that name a parameter (`data_dir=…` or `params.data_dir=…`); return the others.

    names: of the steps and blocks, for the message. Raises ConfigError for a first word that is neither.
    """
    rest = []
    for override in overrides:
        path = override.path[1:] if override.path[0] == "params" else override.path
        if path and path[0] in params:
            set_at(params, path, override.value, override.place)
        elif override.path[0] in names:
            rest.append(override)
        else:
            known = [*params, *names] if override.path[0] != "params" else list(params)
            unknown = path[0] if path else "params"
            raise ConfigError(
                f"{override.place}: no step or parameter '{unknown}' ({nearest(unknown, known)})"
            )
    return rest
