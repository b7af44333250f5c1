"""`ablate:` blocks: one road, and columns that each leave out some of its steps or set some of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.references import VARIANT
from posttrain.flow.source import Places

_FIELDS = ("ablate", "columns", "keep", "decontaminate")
_SWITCHES = ("without", "set")


@dataclass(frozen=True)
class Column:
    """without: steps left out of the road, as written. set: {step.field: value}."""

    name: str
    without: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """A block as written: the reference to the road's end, its columns, and the steps that all of them share
    as the whole road makes them.

    decontaminate: whether rows are kept from holding what the block's evaluation asks, or the fields of the
    step that does it.
    """

    name: str
    end: str
    columns: tuple[Column, ...]
    keep: tuple[str, ...]
    places: Places
    decontaminate: bool | Mapping[str, Any] = True


def read_block(name: str, body: Mapping[str, Any], places: Places) -> Ablation:
    """Raises ConfigError for what an `ablate:` block cannot hold, with its place and what is near."""
    _known(f"{name}: unknown key", body, _FIELDS, places)
    end, columns = body["ablate"], body.get("columns")
    if not isinstance(end, str):
        raise ConfigError(
            f'{places.at(("ablate",))}: {name}.ablate: expected the end of the road, "@step", got {end!r}'
        )
    if not isinstance(columns, dict) or len(columns) < 2:
        raise ConfigError(
            f"{places.at(('columns',))}: {name}.columns: expected two columns or more,"
            f" {{name: {{without: [steps]}}}}, got {columns!r}"
        )
    made = tuple(_column(name, column, given, places) for column, given in columns.items())
    keep = _names(body.get("keep"), f"{name}.keep", places.at(("keep",)))
    return Ablation(name, end, made, keep, places, _decontaminate(name, body, places))


def _decontaminate(name: str, body: Mapping[str, Any], places: Places) -> bool | Mapping[str, Any]:
    given = body.get("decontaminate", True)
    if not isinstance(given, bool | dict) or (isinstance(given, dict) and "data" in given):
        raise ConfigError(
            f"{places.at(('decontaminate',))}: {name}.decontaminate: expected false, or fields of the step"
            f" (not its data), got {given!r}"
        )
    return given


def _column(block: str, name: str, given: Any, places: Places) -> Column:
    here = places.under("columns", name)
    if not VARIANT.fullmatch(name):
        raise ConfigError(f"{here.at()}: {block}.columns: '{name}' is no name for a column (a word)")
    if not isinstance(given, dict | None):
        raise ConfigError(
            f"{here.at()}: {block}.{name}: expected {{without: [steps], set: {{step.field: value}}}},"
            f" or nothing for the whole road, got {given!r}"
        )
    given = given or {}
    _known(f"{block}.{name}: unknown key", given, _SWITCHES, here)
    fields = given.get("set")
    if not isinstance(fields, dict | None):
        raise ConfigError(
            f"{here.at(('set',))}: {block}.{name}.set: expected {{step.field: value}}, got {fields!r}"
        )
    without = _names(given.get("without"), f"{block}.{name}.without", here.at(("without",)))
    return Column(name, without, fields or {})


def _known(what: str, given: Iterable[str], allowed: Sequence[str], places: Places) -> None:
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{places.at((key,))}: {what} '{key}' ({nearest(key, list(allowed))})")


def _names(given: Any, what: str, place: str) -> tuple[str, ...]:
    """One name or a list of them; a leading `@` is no part of it."""
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{place}: {what}: expected a list of steps, got {given!r}")
    return tuple(name.removeprefix("@") for name in listed)
