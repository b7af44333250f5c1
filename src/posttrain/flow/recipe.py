"""A recipe: a flat YAML of steps, read, expanded and checked as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.common.config import Config, mistakes, nearest
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step
from posttrain.flow.asked import asked_of
from posttrain.flow.columns import write_columns
from posttrain.flow.inputs import inputs_of
from posttrain.flow.names import Names
from posttrain.flow.overrides import parse_overrides
from posttrain.flow.references import read_reference
from posttrain.flow.repeats import write_out
from posttrain.flow.screened import SCREENS, screen_rows
from posttrain.flow.source import Source, read_yaml
from posttrain.flow.variants import FlatStep, tell_apart
from posttrain.flow.verbs import NO_MODEL, VERBS, find_verb


@dataclass(frozen=True)
class RecipeStep:
    """One step, checked.

    name: unique in the recipe, e.g. "dpo", "dpo.low", "rounds.2.policy".
    origin: the name it was written under. config: its references are by full name.
    needs: names of the steps it refers to.
    """

    name: str
    origin: str
    step: Step
    config: Config
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """name: the file. steps: each after those it needs. notes: what a reader of the plan should know."""

    name: str
    steps: tuple[RecipeStep, ...]
    notes: tuple[str, ...] = ()

    def select(self, names: Iterable[str]) -> set[str]:
        """The steps that `names` mean: one step, all variants or all rounds of one, or a whole block.

        Raises ConfigError with the nearest name for one that means nothing.
        """
        chosen: set[str] = set()
        for name in names:
            found = {s.name for s in self.steps if name == s.origin or f"{s.name}.".startswith(f"{name}.")}
            if not found:
                known = sorted({s.name for s in self.steps} | {s.origin for s in self.steps})
                raise ConfigError(f"{self.name}: no step '{name}' ({nearest(name, known)})")
            chosen |= found
        return chosen

    def only(self, names: Iterable[str]) -> Recipe:
        """The recipe cut down to the steps that `names` mean and all that they need."""
        wanted = self.select(names)
        for step in reversed(self.steps):
            if step.name in wanted:
                wanted |= set(step.needs)
        return Recipe(self.name, tuple(s for s in self.steps if s.name in wanted), self.notes)


def load_recipe(
    path: Path | str, overrides: Iterable[str] | Mapping[str, Any] = (), verbs: Mapping[str, str] = VERBS
) -> Recipe:
    """Read, expand and check a recipe. overrides: `path.to.field=value`, as `--set` takes them, or a mapping.

    Raises ConfigError with every mistake in the configs and references of all steps, each with its place.
    """
    return check_recipe(read_yaml(path), str(path), overrides, verbs)


def check_recipe(
    source: Source,
    name: str,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    verbs: Mapping[str, str] = VERBS,
) -> Recipe:
    """`load_recipe` for a document that has been read."""
    written = write_out(source, parse_overrides(overrides))
    if not written.templates:
        raise ConfigError(f"{name}: no steps")
    apart = tell_apart(written)
    columns = write_columns(apart, written.ablations, Names(written))
    screens: list[str] = []
    flat = columns.steps
    if SCREENS in verbs:
        asked = {name: asked_of(name, apart, verbs) for name in written.ablations}
        flat, screens = screen_rows(columns, written.ablations, asked)
    kinds = {step.name: step.kind for step in flat}
    steps: list[RecipeStep] = []
    problems: dict[str, None] = {}
    for written_step in flat:
        found = _check(written_step, kinds, verbs)
        if isinstance(found, RecipeStep):
            steps.append(found)
        else:
            problems.update(dict.fromkeys(found))
    if not problems:
        problems.update(dict.fromkeys(_beside_each_other(steps, {step.name: step for step in flat})))
    if problems:
        raise ConfigError("\n".join(problems))
    order = [template.origin for template in written.templates]
    order += [step.origin for step in flat]
    return Recipe(name, tuple(steps), (*_notes(steps, order), *columns.notes, *screens))


def _check(flat: FlatStep, kinds: Mapping[str, Any], verbs: Mapping[str, str]) -> RecipeStep | list[str]:
    """The step with its config parsed, or what is wrong with it."""
    try:
        step = find_verb(flat.kind, verbs)
    except ConfigError as e:
        return [f"{flat.places.at(('do',))}: {flat.origin}: {e}"]
    try:
        config = step.config.model_validate(flat.body)
    except ValidationError as e:
        return [f"{flat.places.at(path)}: {flat.origin}: {text}" for path, text in mistakes(step.config, e)]
    except ConfigError as e:
        return [f"{flat.places.at()}: {flat.origin}: {e}"]
    needs, problems = _check_references(flat, config, kinds)
    return problems or RecipeStep(flat.name, flat.origin, step, config, tuple(needs))


def _check_references(
    flat: FlatStep, config: Config, kinds: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The steps that a config names, and what is wrong with how it names them. kinds: each step's verb."""
    needs: dict[str, None] = {}
    problems: list[str] = []
    for leaf in inputs_of(config):
        if not leaf.value.startswith("@"):
            continue
        reference = read_reference(leaf.value)
        known = reference is not None and reference.name in kinds
        if leaf.kind is None:
            why = "this field takes no step; write the value itself" if known else ""
        elif reference is None:
            why = "no reference: write @step or @step/file" if leaf.kind else ""
        elif known:
            needs[reference.name] = None
            made = kinds[reference.name]
            no_model = leaf.kind == "model" and not reference.file and made in NO_MODEL
            why = f"a model is wanted here, and `{made}` makes none" if no_model else ""
        else:
            why = flat.unresolved.get(leaf.value, "")
        if why:
            problems.append(
                f"{flat.places.at(leaf.path)}: {flat.origin}.{'.'.join(leaf.path)}: '{leaf.value}': {why}"
            )
    return list(needs), problems


def _beside_each_other(steps: Sequence[RecipeStep], written: Mapping[str, FlatStep]) -> Iterator[str]:
    """What is wrong with a config beside those of the steps behind it."""
    by_name = {step.name: step for step in steps}
    for step in steps:
        if step.step.check is None:
            continue
        behind, waiting = dict[str, Config](), list(step.needs)
        while waiting:
            need = by_name[waiting.pop()]
            if need.name not in behind:
                behind[need.name] = need.config
                waiting += need.needs
        for path, text in step.step.check(step.config, behind):
            yield f"{written[step.name].places.at(path)}: {step.origin}.{'.'.join(path)}: {text}"


def _notes(steps: list[RecipeStep], written: list[str]) -> list[str]:
    """Which steps were written above a step they need: the order of running is not the order of reading."""
    position = {name: i for i, name in reversed(list(enumerate(dict.fromkeys(written))))}
    by_name = {step.name: step for step in steps}
    notes: dict[str, None] = {}
    for step in steps:
        for need in step.needs:
            other = by_name[need].origin
            if position[other] > position[step.origin] and other.split(".")[0] != step.origin.split(".")[0]:
                notes[f"'{step.origin}' needs '{other}', written below it: it runs after it"] = None
    return list(notes)
