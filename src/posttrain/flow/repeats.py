"""The first pass over a recipe: parameters filled in, `repeat:` blocks written out round by round."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.ablate import Ablation, read_block
from posttrain.flow.overrides import Override, set_at, set_in_step
from posttrain.flow.params import apply_params, fill, read_params
from posttrain.flow.references import NAME
from posttrain.flow.rounds import RoundScope
from posttrain.flow.source import Places, Source

RESERVED = ("params", "previous", "all")


# A block is written out round by round before anything runs; far more than this is a slip of the keyboard.
MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Template:
    """A step of one round, its variants not yet told apart.

    name: "dpo", or "rounds.2.policy". origin: the name it was written under: "dpo", "rounds.policy".
    body: `do`, `variants` and the config's fields as plain data, with references by full name.
    """

    name: str
    origin: str
    body: dict[str, Any]
    places: Places


@dataclass(frozen=True)
class Block:
    """A `repeat:` block: how many rounds, and the names of its steps."""

    rounds: int
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A recipe after the first pass."""

    templates: tuple[Template, ...]
    blocks: Mapping[str, Block]
    ablations: Mapping[str, Ablation]


def write_out(source: Source, overrides: list[Override]) -> Written:
    """Raises ConfigError for what is not a step, not a block, or named twice."""
    data = copy.deepcopy(source.data)
    given = data.pop("params", None) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"{source.places.at(('params',))}: params: expected a mapping, got {given!r}")
    _check_names([*data, *given], source.places)
    overrides = apply_params(given, overrides, list(data))
    params = read_params(given, source.places.under("params"))
    templates: list[Template] = []
    blocks: dict[str, Block] = {}
    ablations: dict[str, Ablation] = {}
    for name, body in data.items():
        places = source.places.under(name)
        mine = [o for o in overrides if o.path[0] == name]
        _check_entry(name, body, places)
        if "repeat" in body:
            blocks[name], written = _repeat(name, body, places, params, mine)
            templates += written
        elif "ablate" in body:
            ablations[name] = _ablation(name, body, places, params, mine)
        else:
            templates.append(_single(name, body, places, params, mine))
    _check_shadows(blocks, list(data), source.places)
    return Written(tuple(templates), blocks, ablations)


def _check_names(names: list[str], places: Places) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{places.at((name,))}: '{name}' is no name: letters, digits, _ and -, a letter or _ first"
            )
        if name in RESERVED or names.count(name) > 1:
            why = "is a word of the recipe language" if name in RESERVED else "is a step and a parameter"
            raise ConfigError(f"{places.at((name,))}: '{name}' {why}; choose another name")


def _check_entry(name: str, body: Any, places: Places) -> None:
    if not isinstance(body, dict) or not ("do" in body or "repeat" in body or "ablate" in body):
        raise ConfigError(
            f"{places.at()}: '{name}' is no step: expected {{do: <verb>, …}},"
            " {repeat: <rounds>, steps: …} or {ablate: @step, columns: …}"
        )


def _check_shadows(blocks: Mapping[str, Block], top: list[str], places: Places) -> None:
    for block, content in blocks.items():
        for step in content.steps:
            if step in top:
                where = places.at((block, "steps", step))
                raise ConfigError(
                    f"{where}: '{step}' is also the name of a step outside '{block}',"
                    f" so @{step} could mean either; rename one"
                )


def _single(
    name: str, body: dict[str, Any], places: Places, params: Mapping[str, Any], overrides: list[Override]
) -> Template:
    for override in overrides:
        if len(override.path) < 2:
            raise ConfigError(f"{override.place}: '{name}' is a step; name a field of it")
        places = set_in_step(body, override.path[1:], override, places)
    return Template(name, name, fill(body, params, places), places)


def _ablation(
    name: str, body: dict[str, Any], places: Places, params: Mapping[str, Any], overrides: list[Override]
) -> Ablation:
    for override in overrides:
        if len(override.path) < 2:
            raise ConfigError(f"{override.place}: '{name}' is an ablate block; name a field of it")
        set_at(body, override.path[1:], override.value, override.place)
        places = places.moved(override.path[1:], override.place)
    return read_block(name, fill(body, params, places), places)


def _repeat(
    name: str, block: dict[str, Any], places: Places, params: Mapping[str, Any], overrides: list[Override]
) -> tuple[Block, list[Template]]:
    steps = _check_block(name, block, places)
    places, later = _set_in_block(name, block, steps, places, overrides)
    rounds = fill(block["repeat"], params, places, ("repeat",))
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= MOST_ROUNDS:
        raise ConfigError(
            f"{places.at(('repeat',))}: {name}.repeat: expected a number of rounds ≥ 1, got {rounds!r}"
            f" (at most {MOST_ROUNDS})"
        )
    start = fill(block.get("start") or {}, params, places, ("start",))
    unknown = [step for step in start if step not in steps]
    if unknown:
        raise ConfigError(
            f"{places.at(('start', unknown[0]))}: {name}.start: no step '{unknown[0]}' in the block"
            f" ({nearest(unknown[0], list(steps))})"
        )
    _check_rounds_set(name, rounds, steps, later)
    templates = []
    for number in range(1, rounds + 1):
        for step, written in steps.items():
            body, here = copy.deepcopy(written), places.under("steps", step)
            for override in later:
                if override.path[1:3] == (str(number), step):
                    here = set_in_step(body, override.path[3:], override, here)
            body = fill(body, {**params, "round": number}, here)
            body = RoundScope(name, tuple(steps), start, number, here).rewrite(body)
            templates.append(Template(f"{name}.{number}.{step}", f"{name}.{step}", body, here))
    return Block(rounds, tuple(steps)), templates


def _check_block(name: str, block: dict[str, Any], places: Places) -> dict[str, Any]:
    allowed = ["repeat", "start", "steps"]
    for key in block:
        if key not in allowed:
            raise ConfigError(
                f"{places.at((key,))}: {name}: unknown key '{key}' in a repeat block"
                f" ({nearest(key, allowed)})"
            )
    steps, start = block.get("steps"), block.get("start")
    if not isinstance(steps, dict) or not steps:
        raise ConfigError(
            f"{places.at(('steps',))}: {name}.steps: expected a mapping of steps, got {steps!r}"
        )
    if start is not None and not isinstance(start, dict):
        raise ConfigError(
            f"{places.at(('start',))}: {name}.start: expected {{step: what @previous.step means in round 1}},"
            f" got {start!r}"
        )
    _check_names(list(steps), places.under("steps"))
    for step, body in steps.items():
        _check_entry(f"{name}.{step}", body, places.under("steps", step))
        for kind in ("repeat", "ablate"):
            if kind in body:
                at = places.at(("steps", step))
                raise ConfigError(f"{at}: {kind}: a block cannot stand inside another")
    return steps


def _set_in_block(
    name: str, block: dict[str, Any], steps: dict[str, Any], places: Places, overrides: list[Override]
) -> tuple[Places, list[Override]]:
    """Apply what concerns all rounds; return the overrides of single rounds (`rounds.2.policy.field`)."""
    later = []
    for override in overrides:
        path = override.path[1:]
        if path and path[0].isdigit():
            later.append(override)
            continue
        path = path[1:] if path[:1] == ("steps",) else path
        if path and path[0] in ("repeat", "start"):
            set_at(block, path, override.value, override.place)
            places = places.moved(path, override.place)
        elif len(path) > 1 and path[0] in steps:
            inner = set_in_step(steps[path[0]], path[1:], override, places.under("steps", path[0]))
            places = Places(inner.entries, places.prefix)
        else:
            known = ["repeat", "start", *steps]
            word = path[0] if path else ""
            hint = nearest(word, known) if word not in known else "name a field of it"
            raise ConfigError(
                f"{override.place}: '{name}' is a repeat block with no '{word}' to set ({hint})"
            )
    return places, later


def _check_rounds_set(name: str, rounds: int, steps: dict[str, Any], overrides: list[Override]) -> None:
    for override in overrides:
        number, step = override.path[1], "".join(override.path[2:3])
        if step not in steps:
            raise ConfigError(
                f"{override.place}: no step '{step}' in '{name}' ({nearest(step, list(steps))})"
            )
        if not 1 <= int(number) <= rounds:
            raise ConfigError(f"{override.place}: '{name}' has rounds 1 to {rounds}")
        if len(override.path) < 4:
            raise ConfigError(f"{override.place}: '{name}.{number}.{step}' is a step; name a field of it")
