"""One column of an `ablate:` block: what stands in for each step of the road, and which steps that adds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation, Column
from posttrain.flow.leave_out import LeftAlone, put_in, stand_in
from posttrain.flow.ordering import needs_of
from posttrain.flow.overrides import set_at
from posttrain.flow.references import read_reference
from posttrain.flow.source import Place, Places
from posttrain.flow.variants import FlatStep


@dataclass
class Road:
    """The steps behind the end of one block, in order, and what has been written out of them so far.

    taken: names of all steps. copies: the new steps, by the step they are copies of. same: the copy that a
    changed body already has.
    """

    block: Ablation
    end: str
    steps: dict[str, FlatStep]
    taken: set[str]
    copies: dict[str, list[FlatStep]] = field(default_factory=dict)
    same: dict[tuple[str, str], str] = field(default_factory=dict)

    def find(self, name: str, what: str, place: str) -> set[str]:
        """The steps that a name means: one, or all rounds or variants of one. Refuses what the road lacks."""
        found = {step.name for step in self.steps.values() if name in (step.name, step.origin)}
        if not found:
            known = sorted({*self.steps, *(step.origin for step in self.steps.values())})
            raise ConfigError(
                f"{place}: {what}: '{name}' is no step that @{self.end} is made from ({nearest(name, known)})"
            )
        return found

    @property
    def everything(self) -> dict[str, FlatStep]:
        """The road's steps and the copies, by name."""
        return self.steps | {new.name: new for some in self.copies.values() for new in some}


def write_column(column: Column, road: Road) -> str:
    """Write out the steps that differ in one column; the name of the step that is its end.

    Raises ConfigError for a step that cannot be left out, and for a switch that would change nothing.
    """
    block, place = road.block, road.block.places.at(("columns", column.name))
    what = f"{block.name}.{column.name}"
    off = {name: road.find(name, f"{what}.without", place) for name in column.without}
    keep_at = block.places.at(("keep",))
    keep = {n for name in block.keep for n in road.find(name, f"{block.name}.keep", keep_at)}
    gone = {n for names in off.values() for n in names}
    sets = _by_step(column, road, gone | keep, what, place)
    stands = _Stands(column, road, gone, keep, sets, f"{place}: {what}")
    found = stands[road.end]
    end = read_reference(found) if found else None
    if end is None or end.name not in road.everything:
        raise ConfigError(f"{place}: {what}: no step of the recipe is left at its end; leave out fewer")
    _check_effect(stands, off, end.name)
    return end.name


@dataclass
class _Stands(Mapping[str, "str | None"]):
    """What stands in for each step of the road in one column, written out when it is asked for: so a step
    that only steps left out would have needed is not made.

    sets: {step: {path of a field: value}}. known: of the steps that were asked for. open: those being
    written.
    """

    column: Column
    road: Road
    off: set[str]
    keep: set[str]
    sets: Mapping[str, Mapping[Place, Any]]
    where: str
    known: dict[str, str | None] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        return iter(self.road.steps)

    def __len__(self) -> int:
        return len(self.road.steps)

    def __getitem__(self, name: str) -> str | None:
        if name not in self.known:
            step = self.road.steps[name]
            if name in self.open:
                circle = " -> ".join((*self.open[self.open.index(name) :], name))
                raise ConfigError(f"{self.where}.set: these steps need each other: {circle} (-> means needs)")
            self.open.append(name)
            try:
                self.known[name] = self._write(step)
            except LeftAlone as e:
                raise ConfigError(f"{self.where}: {name}{e}") from None
            self.open.pop()
        return self.known[name]

    def _write(self, step: FlatStep) -> str | None:
        if step.name in self.off:
            return stand_in(step.kind, step.body, self)
        if step.name in self.keep:
            return f"@{step.name}"
        body, places = self._set(step)
        changed: dict[str, Any] = put_in(body, self)
        if changed == step.body:
            return f"@{step.name}"
        return f"@{_copy(replace(step, body=changed, places=places), self.column, self.road)}"

    def _set(self, step: FlatStep) -> tuple[dict[str, Any], Places]:
        """The body with the column's own values, which may name steps of the road, and where each stands."""
        body, places = copy.deepcopy(step.body), step.places
        for path, value in self.sets.get(step.name, {}).items():
            set_at(body, path, value, f"{self.where}.set")
            # A mistake in a nested config is told of the field that holds it.
            for end in range(1, len(path) + 1):
                places = places.moved(path[:end], self.where.partition(": ")[0])
        return body, places


def _copy(step: FlatStep, column: Column, road: Road) -> str:
    sign = step.name, json.dumps(step.body, sort_keys=True, default=str)
    if sign not in road.same:
        name = f"{step.name}.{column.name}"
        if name in road.taken:
            at = road.block.places.at(("columns", column.name))
            raise ConfigError(f"{at}: {road.block.name}: there is a step '{name}' already; rename the column")
        road.taken.add(name)
        road.same[sign] = name
        road.copies.setdefault(step.name, []).append(replace(step, name=name))
    return road.same[sign]


def _by_step(
    column: Column, road: Road, fixed: set[str], what: str, place: str
) -> dict[str, dict[Place, Any]]:
    """{step: {path: value}}; the longest name that a dotted path begins with is its step."""
    sets: dict[str, dict[Place, Any]] = {}
    names = sorted({*road.steps, *(s.origin for s in road.steps.values())}, key=len, reverse=True)
    for dotted, value in column.set.items():
        name = next((name for name in names if dotted.startswith(f"{name}.")), dotted.partition(".")[0])
        if "." not in dotted:
            raise ConfigError(f"{place}: {what}.set: write '{dotted}' as step.field")
        for step in road.find(name, f"{what}.set", place):
            if step in fixed:
                raise ConfigError(f"{place}: {what}.set: '{step}' is left out or kept, so it takes no fields")
            sets.setdefault(step, {})[tuple(dotted[len(name) + 1 :].split("."))] = value
    return sets


def _check_effect(stands: _Stands, off: Mapping[str, set[str]], end: str) -> None:
    """Raise ConfigError for a step that is left out and yet made use of, by way of a step that is kept, and
    for fields of a step that the column makes nothing of.
    """
    everything = stands.road.everything
    behind, waiting = set[str](), [end]
    while waiting:
        name = waiting.pop()
        if name not in behind:
            behind.add(name)
            waiting += needs_of(everything[name], everything)
    for name, steps in off.items():
        if not steps & stands.known.keys() and steps & behind:
            kept = ", ".join(sorted(stands.keep & behind))
            raise ConfigError(
                f"{stands.where}.without: '{name}' would still be made use of, for {kept} (`keep`) is made"
                f" from it; leave that out as well, or keep less"
            )
    for step in stands.sets:
        if step not in stands.known:
            raise ConfigError(
                f"{stands.where}.set: nothing in this column is made from '{step}', so its fields would"
                " change nothing; leave them out"
            )
