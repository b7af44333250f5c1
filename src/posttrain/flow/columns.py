"""The third pass over a recipe: the columns of `ablate:` blocks written out, what is the same in two computed
once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation, Column
from posttrain.flow.leave_out import LeftAlone, put_in, stand_in
from posttrain.flow.ordering import in_order, needs_of
from posttrain.flow.overrides import set_at
from posttrain.flow.references import Reference, read_reference, rewrite
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


def write_columns(
    steps: Sequence[FlatStep], blocks: Mapping[str, Ablation]
) -> tuple[list[FlatStep], list[str]]:
    """All steps with those that the columns add, each after what it needs, and a line on each column.

    Raises ConfigError for a name that is no step of the road, or a step that cannot be left out.
    """
    if not blocks:
        return list(steps), []
    models: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    added: dict[str, list[FlatStep]] = {}
    taken = {step.name for step in steps}
    for name, block in blocks.items():
        road = _road(block, steps, taken)
        models[name] = {column.name: _write(column, road) for column in block.columns}
        notes += [_told(name, column, models[name][column.name]) for column in block.columns]
        for step, copies in road.copies.items():
            added.setdefault(step, []).extend(copies)
    written = [new for step in steps for new in (step, *added.get(step.name, ()))]
    return in_order([_named(step, models) for step in written]), notes


def _told(block: str, column: Column, model: str) -> str:
    """What `plan` says of a column."""
    said = [f"without {', '.join(column.without)}"] * bool(column.without)
    said += [f"{path}: {value!r}" for path, value in column.set.items()]
    return f"{block}.{column.name}: {model}" + (f" ({'; '.join(said)})" if said else "")


def _road(block: Ablation, steps: Sequence[FlatStep], taken: set[str]) -> Road:
    by_name = {step.name: step for step in steps}
    end = read_reference(block.end)
    if end is None or end.file or end.name not in by_name:
        said = block.end.removeprefix("@")
        raise ConfigError(
            f"{block.places.at(('ablate',))}: {block.name}.ablate: '{block.end}' is no single step"
            f" ({nearest(said, sorted(by_name))})"
        )
    behind = {end.name}
    for step in reversed(steps):
        if step.name in behind:
            behind |= needs_of(step, by_name)
    return Road(block, end.name, {step.name: step for step in steps if step.name in behind}, taken)


def _write(column: Column, road: Road) -> str:
    """Write out the steps that differ in one column; the name of the step that is its end."""
    block, place = road.block, road.block.places.at(("columns", column.name))
    what = f"{block.name}.{column.name}"
    off = {n for name in column.without for n in road.find(name, f"{what}.without", place)}
    keep_at = block.places.at(("keep",))
    keep = {n for name in block.keep for n in road.find(name, f"{block.name}.keep", keep_at)}
    sets = _by_step(column, road, off | keep, what, place)
    found = Stands(column, road, off, keep, sets, f"{place}: {what}")[road.end]
    copies = {new.name for some in road.copies.values() for new in some}
    end = read_reference(found) if found else None
    if end is None or end.name not in {*road.steps, *copies}:
        raise ConfigError(f"{place}: {what}: no step of the recipe is left at its end; leave out fewer")
    return end.name


@dataclass
class Stands(Mapping[str, "str | None"]):
    """What stands in for each step of the road in one column, written out when it is asked for: so a step
    that only steps left out would have needed is not made.
    """

    column: Column
    road: Road
    off: set[str]
    keep: set[str]
    sets: Mapping[str, Mapping[tuple[str, ...], Any]]
    where: str
    known: dict[str, str | None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.road.steps)

    def __len__(self) -> int:
        return len(self.road.steps)

    def __getitem__(self, name: str) -> str | None:
        if name not in self.known:
            step = self.road.steps[name]
            try:
                self.known[name] = self._write(step)
            except LeftAlone as e:
                raise ConfigError(f"{self.where}: {name}{e}") from None
        return self.known[name]

    def _write(self, step: FlatStep) -> str | None:
        if step.name in self.off:
            return stand_in(step.kind, step.body, self)
        if step.name in self.keep:
            return f"@{step.name}"
        body, places = put_in(step.body, self), step.places
        for path, value in self.sets.get(step.name, {}).items():
            set_at(body, path, value, f"{self.where}.set")
            # A mistake in a nested config is told of the field that holds it.
            for end in range(1, len(path) + 1):
                places = places.moved(path[:end], self.where.partition(": ")[0])
        step = replace(step, places=places)
        return f"@{step.name}" if body == step.body else f"@{_copy(step, body, self.column, self.road)}"


def _copy(step: FlatStep, body: dict[str, Any], column: Column, road: Road) -> str:
    sign = step.name, json.dumps(body, sort_keys=True, default=str)
    if sign not in road.same:
        name = f"{step.name}.{column.name}"
        if name in road.taken:
            at = road.block.places.at(("columns", column.name))
            raise ConfigError(f"{at}: {road.block.name}: there is a step '{name}' already; rename the column")
        road.taken.add(name)
        road.same[sign] = name
        road.copies.setdefault(step.name, []).append(replace(step, name=road.same[sign], body=body))
    return road.same[sign]


def _by_step(
    column: Column, road: Road, fixed: set[str], what: str, place: str
) -> dict[str, dict[tuple[str, ...], Any]]:
    """{step: {path: value}}; the longest name that a dotted path begins with is its step."""
    sets: dict[str, dict[tuple[str, ...], Any]] = {}
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


def _named(step: FlatStep, models: Mapping[str, dict[str, str]]) -> FlatStep:
    """A step with what it says of blocks resolved: `@block.column` to a step, `@block` to all of them, as a
    mapping by column, or spliced where it stands in a list.
    """
    unresolved = dict(step.unresolved)

    def change(reference: Reference) -> Any:
        block, rest = reference.parts[0], reference.parts[1:]
        if block not in models:
            return None
        if len(rest) > 1 or (rest and rest[0] not in models[block]):
            unresolved[str(reference)] = (
                f"no column '{'.'.join(rest)}' in '{block}' ({nearest(rest[0], list(models[block]))})"
            )
            return None
        unresolved.pop(str(reference), None)
        named = {c: str(Reference(tuple(n.split(".")), reference.file)) for c, n in models[block].items()}
        return named[rest[0]] if rest else named

    return replace(step, body=rewrite(step.body, change), unresolved=unresolved)
