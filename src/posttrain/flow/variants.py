"""The second pass over a recipe: variants told apart, and what depends on a varied step varied with it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.flow.names import Names, Target
from posttrain.flow.overrides import set_at
from posttrain.flow.references import VARIANT, Reference, references_in, rewrite
from posttrain.flow.repeats import Template, Written
from posttrain.flow.source import Places

Axes = dict[str, tuple[str, ...]]
"""{the step that has variants, by the name it was written under: their names}."""


@dataclass(frozen=True)
class FlatStep:
    """A step with nothing left to expand.

    name: "dpo.low", "rounds.2.policy". origin: the name it was written under. kind: its verb.
    body: the config as plain data; each reference in it names one flat step, or could not be resolved.
    unresolved: {reference: why}.
    """

    name: str
    origin: str
    kind: Any
    body: dict[str, Any]
    places: Places
    unresolved: Mapping[str, str] = field(default_factory=dict)


def tell_apart(written: Written) -> list[FlatStep]:
    """Every step of the recipe, in an order in which each stands after what it needs.

    Raises ConfigError for steps that need each other.
    """
    bodies = {template.name: dict(_bodies(template)) for template in written.templates}
    names = Names(written)
    order = _order(written.templates, bodies, names)
    axes = _axes(order, bodies, names, list(dict.fromkeys(t.origin for t in written.templates)))
    return [flat for template in order for flat in _flatten(template, bodies[template.name], axes, names)]


def _bodies(template: Template) -> Iterator[tuple[str | None, tuple[dict[str, Any], Places]]]:
    """The body of each variant, or the one body under None."""
    shared = {key: value for key, value in template.body.items() if key != "variants"}
    variants = template.body.get("variants")
    if variants is None:
        yield None, (shared, template.places)
        return
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(
            f"{template.places.at(('variants',))}: {template.origin}.variants:"
            f" expected {{name: {{field: value}}}}, got {variants!r}"
        )
    for name, fields in variants.items():
        place = template.places.at(("variants", name))
        if not VARIANT.fullmatch(name) or name.isdigit() or name in shared:
            why = (
                "is a field of the step"
                if name in shared
                else "is no name for a variant (a word, not a number)"
            )
            raise ConfigError(f"{place}: {template.origin}.variants: '{name}' {why}")
        if not isinstance(fields, dict | None):
            raise ConfigError(f"{place}: {template.origin}.{name}: expected {{field: value}}, got {fields!r}")
        body, places = copy.deepcopy(shared), template.places
        for dotted, value in (fields or {}).items():
            here = template.places.at(("variants", name, dotted))
            path = tuple(dotted.split("."))
            set_at(body, path, value, f"{here}: {template.origin}.{name}")
            places = places.moved(path, here)
        yield name, (body, places)


Bodies = dict[str, dict[str | None, tuple[dict[str, Any], Places]]]


def _targets(name: str, bodies: Bodies, names: Names) -> list[Target]:
    found = (names.find(ref) for body, _ in bodies[name].values() for ref in references_in(body))
    return [target for target in found if isinstance(target, Target)]


def _order(templates: Sequence[Template], bodies: Bodies, names: Names) -> list[Template]:
    """After what each needs, and else as written."""
    needs = {
        t.name: {n for target in _targets(t.name, bodies, names) for n in target.names} for t in templates
    }
    sorter = TopologicalSorter(needs)
    try:
        sorter.prepare()
    except CycleError as e:
        circle = list(reversed(e.args[1]))
        first = next(t for t in templates if t.name == circle[0])
        raise ConfigError(
            f"{first.places.at()}: these steps need each other: {' -> '.join(circle)} (-> means needs)"
        ) from None
    position = {template.name: i for i, template in enumerate(templates)}
    done: list[Template] = []
    left = dict(needs)
    while left:
        name = min((n for n, wanted in left.items() if not wanted & left.keys()), key=position.__getitem__)
        done.append(templates[position[name]])
        del left[name]
    return done


def _axes(order: Sequence[Template], bodies: Bodies, names: Names, origins: list[str]) -> dict[str, Axes]:
    """Along which variants each step is varied: its own, and those of what it names without saying which."""
    axes: dict[str, Axes] = {}
    for template in order:
        found: Axes = {}
        for target in _targets(template.name, bodies, names):
            for name in target.names:
                picked = target.pick(axes[name])
                if isinstance(picked, dict) and not target.star:
                    found |= {origin: v for origin, v in axes[name].items() if origin not in picked}
        own = tuple(variant for variant in bodies[template.name] if variant is not None)
        if own:
            found[template.origin] = own
        axes[template.name] = {origin: found[origin] for origin in origins if origin in found}
    return axes


def _flatten(
    template: Template,
    bodies: dict[str | None, tuple[dict[str, Any], Places]],
    axes: dict[str, Axes],
    names: Names,
) -> Iterator[FlatStep]:
    mine = axes[template.name]
    for chosen in itertools.product(*mine.values()):
        setting = dict(zip(mine, chosen, strict=True))
        body, places = bodies[setting.get(template.origin)]
        unresolved: dict[str, str] = {}

        def change(reference: Reference, setting: Any = setting, unresolved: Any = unresolved) -> Any:
            found = _resolve(reference, setting, axes, names)
            if isinstance(found, Unresolved):
                unresolved[str(reference)] = found.why
                return None
            return found

        exact = rewrite({k: v for k, v in body.items() if k != "do"}, change)
        yield FlatStep(
            _flat_name(template.name, setting.values()),
            template.origin,
            body["do"],
            exact,
            places,
            unresolved,
        )


@dataclass(frozen=True)
class Unresolved:
    why: str


def _resolve(
    reference: Reference, setting: Mapping[str, str], axes: dict[str, Axes], names: Names
) -> str | list[str] | Unresolved:
    target = names.find(reference)
    if not isinstance(target, Target):
        return Unresolved(target)
    found: list[str] = []
    for name in target.names:
        picked = target.pick(axes[name])
        if not isinstance(picked, dict):
            return Unresolved(picked)
        fixed = {} if target.star else dict(setting)
        choices = [
            (picked[origin],) if origin in picked else (fixed[origin],) if origin in fixed else variants
            for origin, variants in axes[name].items()
        ]
        found += [str(Reference((_flat_name(name, c),), reference.file)) for c in itertools.product(*choices)]
    return found if target.many else found[0]


def _flat_name(name: str, chosen: Any) -> str:
    return ".".join((name, *chosen))
