"""`--set a.b=c`: where in a recipe each one goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.flow.source import Place, Places, parse_value


@dataclass(frozen=True)
class Override:
    """One `--set`: the path of keys, the value as YAML reads it, and the text as it was given."""

    path: Place
    value: Any
    text: str

    @property
    def place(self) -> str:
        return f"--set {self.text}"

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def parse_overrides(given: Iterable[str] | Mapping[str, Any]) -> list[Override]:
    """From `path=value` texts, or {path: value}. Raises ConfigError for one that is neither."""
    if isinstance(given, Mapping):
        return [Override(tuple(path.split(".")), value, f"{path}={value}") for path, value in given.items()]
    overrides = []
    for text in given:
        path, equals, value = text.partition("=")
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            raise ConfigError(f"--set {text}: write it as path.to.field=value")
        bare = value.startswith("@")  # a shell has taken the quotes that YAML wants around a reference
        overrides.append(Override(keys, value if bare else parse_value(value, f"--set {text}"), text))
    return overrides


def set_at(target: dict[str, Any], path: Place, value: Any, place: str) -> None:
    """Put a value at `path` in `target`, making the mappings on the way that are not there.

    place: where the value comes from.
    Raises ConfigError where something on the way is neither a mapping nor a list.
    """
    inner: Any = target
    for i, key in enumerate(path):
        last = i == len(path) - 1
        if isinstance(inner, list):
            index = _index(inner, key, place)
            if last:
                inner[index] = value
            inner = inner[index]
        elif isinstance(inner, dict):
            if last:
                inner[key] = value
            elif inner.get(key) is None:
                inner[key] = {}
            inner = inner[key]
        else:
            raise ConfigError(f"{place}: '{'.'.join(path[:i])}' is {inner!r}, which has no '{key}' in it")


def set_in_step(body: dict[str, Any], path: Place, override: Override, places: Places) -> Places:
    """Put an override into one step: into a variant if `path` starts with its name, else into what all share.

    Returns the places with this one noted. Raises ConfigError where every variant would hide the value.
    """
    variants = body.get("variants")
    if isinstance(variants, dict) and path[0] in variants:
        if len(path) == 1:
            raise ConfigError(f"{override.place}: '{path[0]}' is a variant; name a field of it")
        if variants[path[0]] is None:
            variants[path[0]] = {}
        dotted = ".".join(path[1:])
        variants[path[0]][dotted] = override.value
        return places.moved(("variants", path[0], dotted), override.place)
    if isinstance(variants, dict) and variants and path[0] not in ("do", "variants"):
        hidden = [name for name, fields in variants.items() if _covers(fields, path)]
        if len(hidden) == len(variants):
            some = ".".join((*override.path[: len(override.path) - len(path)], hidden[0], *path))
            raise ConfigError(f"{override.place}: every variant gives its own value; set one, e.g. {some}")
    set_at(body, path, override.value, override.place)
    return places.moved(path, override.place)


def _covers(fields: Any, path: Place) -> bool:
    return isinstance(fields, dict) and any(
        path[: len(k)] == k for k in (tuple(f.split(".")) for f in fields)
    )


def _index(items: list[Any], key: str, place: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"{place}: '{key}' is no position in a list of {len(items)} (0 is the first)")
