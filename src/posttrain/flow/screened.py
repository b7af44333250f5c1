"""The rows that the columns of an `ablate:` block learn from, without what the block's evaluation asks.

A column that has seen the questions would win for that alone. So before each training of the road stands a
step `decontaminate`, against the tasks of the `evaluate` steps that name the block, unless it says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation
from posttrain.flow.inputs import inputs_of
from posttrain.flow.leave_out import TRAINS
from posttrain.flow.ordering import needs_of
from posttrain.flow.references import read_reference, references_in
from posttrain.flow.variants import FlatStep
from posttrain.flow.verbs import find_verb

SCREENS = "decontaminate"
EVALUATES = "evaluate"


@dataclass
class _Asked:
    """What an evaluation asks. against: sources of prompts, as a recipe writes them. unknown: the others."""

    against: list[Any] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def screen_rows(
    steps: Sequence[FlatStep], blocks: Mapping[str, Ablation], verbs: Mapping[str, str]
) -> tuple[list[FlatStep], list[str]]:
    """All steps, a `decontaminate` in front of each training of a block's road, and what `plan` says of it.

    Rows that come from a `decontaminate` step of the recipe itself are left as they are.
    """
    found = {step.name: step for step in steps}
    screens: dict[str, FlatStep] = {}
    notes: list[str] = []
    for name, block in blocks.items():
        if block.decontaminate is False or SCREENS not in verbs:
            continue
        trains = [step for step in _behind(block, found) if step.kind == TRAINS and _rows(step.body)]
        trains = [step for step in trains if step.name in screens or not _screened(step, found)]
        if not trains:
            continue
        fields = {} if block.decontaminate is True else dict(block.decontaminate)
        asked = _asked(name, steps, verbs, {step.name for step in trains})
        against = _listed(fields.pop("against")) if "against" in fields else asked.against
        if not against:
            notes.append(
                f"{name}: nothing to decontaminate against{''.join(f'; {u}' for u in asked.unknown)}"
            )
            continue
        for step in trains:
            screens[step.name] = _screen(step, block, fields, against, screens.get(step.name), found)
            found[step.name] = _learning_from(found[step.name], screens[step.name].name)
        told = ", ".join(step.name for step in trains)
        notes.append(f"{name}: the rows of {told} are decontaminated against {_words(against)}")
        notes += [f"{name}: not decontaminated against {why}" for why in asked.unknown]
    made = [new for step in steps for new in (*_one(screens.get(step.name)), found[step.name])]
    return made, notes


def _one(step: FlatStep | None) -> tuple[FlatStep, ...]:
    return () if step is None else (step,)


def _behind(block: Ablation, steps: Mapping[str, FlatStep]) -> list[FlatStep]:
    """The steps that the block's end is made from, itself included; none where it has no such end."""
    end = read_reference(block.end)
    waiting = [end.name] if end and end.name in steps else []
    names: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        if name not in names:
            names[name] = None
            waiting += needs_of(steps[name], steps)
    return [step for step in steps.values() if step.name in names]


def _rows(body: Mapping[str, Any]) -> Any:
    """What a training learns from: its rows, or the prompts it samples answers to."""
    online = body.get("online")
    return online.get("prompts") if isinstance(online, Mapping) else body.get("data")


def _learning_from(step: FlatStep, name: str) -> FlatStep:
    if isinstance(step.body.get("online"), Mapping):
        body = {**step.body, "online": {**step.body["online"], "prompts": f"@{name}"}}
    else:
        body = {**step.body, "data": f"@{name}"}
    return replace(step, body=body)


def _screened(step: FlatStep, steps: Mapping[str, FlatStep]) -> bool:
    """Whether all that a training learns from comes out of `decontaminate` steps already."""
    found = [read_reference(one) if isinstance(one, str) else None for one in _listed(_rows(step.body))]
    return all(one is not None and one.name in steps and steps[one.name].kind == SCREENS for one in found)


def _screen(
    step: FlatStep,
    block: Ablation,
    fields: Mapping[str, Any],
    against: list[Any],
    before: FlatStep | None,
    steps: Mapping[str, FlatStep],
) -> FlatStep:
    """The step in front of a training; `before`: what another block has put there."""
    if before is not None:
        known = before.body["against"]
        if {k: v for k, v in before.body.items() if k not in ("data", "against")} != fields:
            raise ConfigError(
                f"{block.places.at(('decontaminate',))}: {block.name}.decontaminate: '{step.name}' is on the "
                "road of another block that says otherwise; give both the same fields"
            )
        more = [one for one in against if one not in known]
        return replace(before, body={**before.body, "against": [*known, *more]})
    name = f"{step.name}.{SCREENS}"
    if name in steps:
        raise ConfigError(
            f"{steps[name].places.at()}: '{name}' is the name of the step that {block.name} puts there"
        )
    body = {"data": _rows(step.body), "against": against, **fields}
    places = block.places.under("decontaminate")
    return FlatStep(name, f"{step.origin}.{SCREENS}", SCREENS, body, places, step.unresolved)


def _asked(
    block: str, steps: Sequence[FlatStep], verbs: Mapping[str, str], trains: Collection[str]
) -> _Asked:
    """What the evaluations of a block ask, each source once, without what the road itself makes."""
    asked = _Asked()
    by_name = {step.name: step for step in steps}
    for step in steps:
        if step.kind != EVALUATES or all(one.parts[0] != block for one in references_in(step.body)):
            continue
        try:
            config = find_verb(step.kind, verbs).config.model_validate(step.body)
        except (ValidationError, ConfigError):
            continue  # told where all steps are checked
        for one in _of_tasks(config, asked.unknown):
            reference = read_reference(one) if isinstance(one, str) else None
            if reference and _made_from(reference.name, by_name, trains):
                asked.unknown.append(f"{one}: the road itself makes it")
            elif one not in asked.against:
                asked.against.append(one)
    return asked


def _of_tasks(config: Config, unknown: list[str]) -> list[Any]:
    """The data that the tasks name, and the prompts that they make themselves."""
    found: list[Any] = []
    leaves = [leaf for leaf in inputs_of(config) if leaf.path[0] == "tasks" and leaf.kind == "data"]
    for i, use in enumerate(getattr(config, "tasks", ())):
        named = [leaf.value for leaf in leaves if leaf.path[1] == str(i)]
        asks = use.settings.asks() if hasattr(use.settings, "asks") else []
        if not (named or asks):
            unknown.append(f"{use.label}, which does not say what it asks: name it in `against`")
        found += [*named, *(asks or ())]
    return found


def _made_from(name: str, steps: Mapping[str, FlatStep], trains: Collection[str]) -> bool:
    waiting, seen = [name], set[str]()
    while waiting:
        one = waiting.pop()
        if one in trains:
            return True
        if one in steps and one not in seen:
            seen.add(one)
            waiting += needs_of(steps[one], steps)
    return False


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _words(against: Sequence[Any]) -> str:
    counts = Counter(str(one.get("name", one)) if isinstance(one, Mapping) else str(one) for one in against)
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())
