"""The third pass over a recipe: the columns of `ablate:` blocks written out, what is the same in two computed
once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation, Column
from posttrain.flow.names import Names
from posttrain.flow.ordering import in_order, needs_of
from posttrain.flow.references import Reference, read_reference, rewrite
from posttrain.flow.stands import Road, write_column
from posttrain.flow.variants import FlatStep

Ends = Mapping[str, Mapping[str, str]]
"""{block: {column: the step that is its end}}."""


@dataclass(frozen=True)
class Columns:
    """All steps with those that the columns add, each after what it needs; the columns' ends, and each
    block's whole road's; and a line on each column.
    """

    steps: list[FlatStep]
    ends: Ends
    roads: Mapping[str, str]
    notes: list[str]


def write_columns(steps: Sequence[FlatStep], blocks: Mapping[str, Ablation], names: Names) -> Columns:
    """names: which step a road's end means.

    Raises ConfigError for a name that is no step of the road, a step that cannot be left out, and two columns
    of a block that are the same model.
    """
    if not blocks:
        return Columns(list(steps), {}, {}, [])
    ends: dict[str, dict[str, str]] = {}
    roads: dict[str, str] = {}
    notes: list[str] = []
    added: dict[str, list[FlatStep]] = {}
    taken = {step.name for step in steps}
    for name, block in blocks.items():
        road = _road(block, steps, taken, names)
        roads[name] = road.end
        ends[name] = {column.name: write_column(column, road) for column in block.columns}
        _check_differ(block, ends[name])
        notes += [_told(name, column, ends[name][column.name]) for column in block.columns]
        for step, copies in road.copies.items():
            added.setdefault(step, []).extend(copies)
    written = [new for step in steps for new in (step, *added.get(step.name, ()))]
    return Columns(in_order([_named(step, ends) for step in written]), ends, roads, notes)


def _check_differ(block: Ablation, ends: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for column, end in ends.items():
        if end in first:
            raise ConfigError(
                f"{block.places.at(('columns', column))}: {block.name}.{column}: the same model as column"
                f" '{first[end]}' ({end}), so a table could not tell them apart; leave one of them out"
            )
        first[end] = column


def _told(block: str, column: Column, model: str) -> str:
    """What `plan` says of a column."""
    said = [f"without {', '.join(column.without)}"] * bool(column.without)
    said += [f"{path}: {value!r}" for path, value in column.set.items()]
    return f"{block}.{column.name}: {model}" + (f" ({'; '.join(said)})" if said else "")


def _road(block: Ablation, steps: Sequence[FlatStep], taken: set[str], names: Names) -> Road:
    by_name = {step.name: step for step in steps}
    end = _single(block.end, names)
    if end not in by_name:
        said = block.end.removeprefix("@")
        raise ConfigError(
            f"{block.places.at(('ablate',))}: {block.name}.ablate: '{block.end}' is no single step"
            f" ({nearest(said, sorted(by_name))})"
        )
    behind = {end}
    for step in reversed(steps):
        if step.name in behind:
            behind |= needs_of(step, by_name)
    return Road(block, end, {step.name: step for step in steps if step.name in behind}, taken)


def _single(end: str, names: Names) -> str:
    """The step that the end of a road may be: of a `repeat:` block the last round's, as elsewhere."""
    reference = read_reference(end)
    found = names.find(reference) if reference and not reference.file else ""
    if isinstance(found, str) or found.many:
        return ""
    return ".".join((found.names[0], *found.picks))


def _named(step: FlatStep, models: Ends) -> FlatStep:
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
