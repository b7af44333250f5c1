"""What the evaluations of an `ablate:` block ask: sources of prompts, by the labels of their tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.flow.inputs import inputs_of
from posttrain.flow.ordering import needs_of
from posttrain.flow.references import read_reference, references_in
from posttrain.flow.variants import FlatStep
from posttrain.flow.verbs import find_verb

EVALUATES = "evaluate"
_TAKEN = ("name", "path")  # keys by which `against` tells a source from several under names of their own


@dataclass
class Asked:
    """against: {label of the task: source}, as a recipe writes sources, each once. unknown: what cannot be
    compared, and why.
    """

    against: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def add(self, label: str, source: Any) -> None:
        if source not in self.against.values():
            taken = {*self.against, *_TAKEN}
            numbered = (f"{label}~{n}" for n in range(2, len(taken) + 3))
            self.against[next(name for name in (label, *numbered) if name not in taken)] = source

    def without_own(self, steps: Mapping[str, FlatStep], trains: Collection[str]) -> Asked:
        """The same without what the trainings themselves make: their rows cannot wait for it."""
        found = Asked(unknown=list(self.unknown))
        for label, source in self.against.items():
            reference = read_reference(source) if isinstance(source, str) else None
            if reference and _made_from(reference.name, steps, trains):
                found.unknown.append(f"{source}: the road itself makes it")
            else:
                found.against[label] = source
        return found


def asked_of(block: str, steps: Sequence[FlatStep], verbs: Mapping[str, str]) -> Asked:
    """What the `evaluate` steps that name the block ask."""
    asked = Asked()
    for step in steps:
        if step.kind != EVALUATES or all(one.parts[0] != block for one in references_in(step.body)):
            continue
        try:
            config = find_verb(step.kind, verbs).config.model_validate(step.body)
        except (ValidationError, ConfigError):
            continue  # told where all steps are checked
        for label, source in _sources(config, asked.unknown):
            asked.add(label, source)
    return asked


def _sources(config: Config, unknown: list[str]) -> Iterator[tuple[str, Any]]:
    """The data that the tasks name, and the prompts that they make themselves."""
    leaves = [leaf for leaf in inputs_of(config) if leaf.path[0] == "tasks" and leaf.kind == "data"]
    for i, use in enumerate(getattr(config, "tasks", ())):
        asks = use.settings.asks() if hasattr(use.settings, "asks") else []
        named = [leaf.value for leaf in leaves if leaf.path[1] == str(i)]
        if asks is None or not (named or asks):
            unknown.append(f"{use.label}, which does not say what it asks: name it in `against`")
            continue
        for source in (*named, *asks):
            yield use.label, source


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
