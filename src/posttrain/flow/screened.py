"""The rows that the columns of an `ablate:` block learn from, without what the block's evaluation asks.

A column that has seen the questions would win for that alone. So before each training of the columns stands a
step `decontaminate`, against the tasks of the `evaluate` steps that name the block, unless it says otherwise.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation
from posttrain.flow.asked import Asked
from posttrain.flow.columns import Columns
from posttrain.flow.leave_out import TRAINS
from posttrain.flow.ordering import in_order, needs_of
from posttrain.flow.overrides import set_at
from posttrain.flow.references import read_reference
from posttrain.flow.source import Place
from posttrain.flow.variants import FlatStep

SCREENS = "decontaminate"
# Where a training says what it learns from, and how the step that screens it is called.
ROWS: Mapping[Place, str] = {
    ("data",): SCREENS,
    ("online", "prompts"): SCREENS,
    ("online", "mix", "data"): f"{SCREENS}_mix",
}


@dataclass(frozen=True)
class _Screen:
    """What the rows of a training are kept from holding. block: that said so first. against: {name: source},
    or what the block gives in place of it. fields: the others of the step.
    """

    block: Ablation
    against: Any
    fields: Mapping[str, Any]

    def and_for(self, other: _Screen, step: str) -> _Screen:
        """One for two blocks. Raises ConfigError where they say otherwise."""
        if self.fields != other.fields:
            at = other.block.places.at(("decontaminate",))
            raise ConfigError(
                f"{at}: {other.block.name}.decontaminate: '{step}' is on the road of another block that says"
                " otherwise; give both the same fields"
            )
        if isinstance(self.against, Mapping) and isinstance(other.against, Mapping):
            both = Asked(dict(self.against))
            for label, source in other.against.items():
                both.add(label, source)
            return replace(self, against=both.against)
        known = _listed(self.against)
        return replace(self, against=known + [one for one in _listed(other.against) if one not in known])


def screen_rows(
    columns: Columns, blocks: Mapping[str, Ablation], asked: Mapping[str, Asked]
) -> tuple[list[FlatStep], list[str]]:
    """All steps, a `decontaminate` before each training of a block's columns, and what `plan` says of it.

    asked: of each block, what its evaluations ask. Rows that come from a `decontaminate` step of the recipe
    itself are left as they are.
    """
    steps = {step.name: step for step in columns.steps}
    wanted: dict[str, _Screen] = {}
    notes: list[str] = []
    for name, block in blocks.items():
        trains = [step for step in _behind(block, columns, steps) if any(_unscreened(step, steps))]
        if block.decontaminate is False or not trains:
            continue
        fields = {} if block.decontaminate is True else dict(block.decontaminate)
        found = asked[name].without_own(steps, {step.name for step in trains})
        against = fields.pop("against", found.against)
        if not against:
            notes.append(
                f"{name}: nothing to decontaminate against{''.join(f'; {u}' for u in found.unknown)}"
            )
            continue
        mine = _Screen(block, against, fields)
        for step in trains:
            before = wanted.get(step.name)
            wanted[step.name] = before.and_for(mine, step.name) if before else mine
        told = ", ".join(dict.fromkeys(step.origin for step in trains))
        notes.append(f"{name}: the rows of {told} are decontaminated against {_words(against)}")
        notes += [f"{name}: not decontaminated against {why}" for why in found.unknown]
    return _put_in(columns.steps, wanted, steps), notes


def _behind(block: Ablation, columns: Columns, steps: Mapping[str, FlatStep]) -> list[FlatStep]:
    """The trainings that a block's columns, and its whole road, are made by."""
    waiting = [*columns.ends[block.name].values(), columns.roads[block.name]]
    names = set[str]()
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += needs_of(steps[name], steps)
    return [step for step in steps.values() if step.name in names and step.kind == TRAINS]


def _unscreened(step: FlatStep, steps: Mapping[str, FlatStep]) -> Iterator[Place]:
    """Where a training names rows that do not come out of `decontaminate` steps already."""
    for path in ROWS:
        rows: Any = step.body
        for key in path:
            rows = rows.get(key) if isinstance(rows, Mapping) else None
        if rows is None:
            continue
        named = [read_reference(one) if isinstance(one, str) else None for one in _listed(rows)]
        if not all(
            one is not None and one.name in steps and steps[one.name].kind == SCREENS for one in named
        ):
            yield path


def _put_in(
    steps: Iterable[FlatStep], wanted: Mapping[str, _Screen], known: Mapping[str, FlatStep]
) -> list[FlatStep]:
    """All steps, those that are wanted among them; what is the same for two copies of a step is one."""
    made: list[FlatStep] = []
    same: dict[str, str] = {}
    for step in steps:
        body = copy.deepcopy(step.body)
        for path in tuple(_unscreened(step, known)) if step.name in wanted else ():
            screen = _screen(step, path, wanted[step.name], known)
            sign = json.dumps([step.origin, ROWS[path], screen.body], sort_keys=True, default=str)
            if sign not in same:
                same[sign] = screen.name
                made.append(screen)
            set_at(body, path, f"@{same[sign]}", step.places.at())
        made.append(replace(step, body=body))
    return in_order(made) if wanted else made


def _screen(step: FlatStep, path: Place, screen: _Screen, known: Mapping[str, FlatStep]) -> FlatStep:
    rows: Any = step.body
    for key in path:
        rows = rows[key]
    name = f"{step.name}.{ROWS[path]}"
    if name in known:
        raise ConfigError(
            f"{known[name].places.at()}: '{name}' is the name of the step that {screen.block.name} puts there"
        )
    body = {"data": rows, "against": screen.against, **screen.fields}
    places = screen.block.places.under("decontaminate")
    return FlatStep(name, f"{step.origin}.{ROWS[path]}", SCREENS, body, places, step.unresolved)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Mapping) and not {"name", "path"} & value.keys():
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _words(against: Any) -> str:
    if isinstance(against, Mapping) and not {"name", "path"} & against.keys():
        return ", ".join(str(name) for name in against)
    return ", ".join(
        str(one.get("name", one)) if isinstance(one, Mapping) else str(one) for one in _listed(against)
    )
