"""The plan: the key of every step, whether the store has it, and if not, what changed since it last had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.flow.artifact import unfinished
from posttrain.flow.fingerprint import Fingerprint, Outsiders, fingerprint
from posttrain.flow.inputs import inputs_of
from posttrain.flow.recipe import Recipe, RecipeStep
from posttrain.flow.references import read_reference
from posttrain.flow.store import Store

Status = Literal["hit", "run", "resume", "running"]
_INPUT_FORMS = (
    {"artifact"},
    {"artifact", "file"},
    {"content"},
    {"text"},
    {"model", "revision"},
    {"code", "source"},
)


@dataclass(frozen=True)
class Planned:
    """A step with its key. why: what is new about it, one line a change; empty for a hit.

    keys: of the steps it needs, by name. folder: of the artifact, or of what a killed run left.
    """

    step: RecipeStep
    print: Fingerprint
    keys: Mapping[str, str]
    status: Status
    why: tuple[str, ...]
    folder: Path | None

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def key(self) -> str:
        return self.print.key


def make_plan(recipe: Recipe, store: Store) -> list[Planned]:
    """One entry a step, in the order of running. Nothing is run: a step's key follows from its inputs' keys.

    Raises ConfigError, with all that is missing, where an input from outside the recipe does not exist.
    """
    outside = Outsiders(store.hasher)
    manifests = store.manifests()
    keys: dict[str, str] = {}
    planned: list[Planned] = []
    problems: list[str] = []
    for step in recipe.steps:
        try:
            print_ = fingerprint(step.step, step.config, keys.get, outside)
        except ConfigError as e:
            problems.append(f"{recipe.name}: {step.name}.{e}")
            keys[step.name] = "?"
            continue
        keys[step.name] = print_.key
        needs = {name: keys[name] for name in step.needs}
        planned.append(_look_up(step, print_, needs, store, planned, manifests))
    if problems:
        raise ConfigError("\n".join(problems))
    return planned


def _look_up(
    step: RecipeStep,
    print_: Fingerprint,
    needs: Mapping[str, str],
    store: Store,
    planned: Iterable[Planned],
    manifests: list[tuple[Path, dict[str, Any]]],
) -> Planned:
    twin = next((other.name for other in planned if other.key == print_.key), None)
    if twin:
        return Planned(step, print_, needs, "hit", (f"the same as '{twin}'",), store.find(print_.key))
    whole = store.find(print_.key)
    if whole:
        return Planned(step, print_, needs, "hit", (), whole)
    partial = store.partial(print_.key)
    if partial and unfinished(partial):
        who = store.running(print_.key)
        why = f"running now: {who}" if who else "a run of it was cut short"
        return Planned(step, print_, needs, "running" if who else "resume", (why,), partial)
    return Planned(step, print_, needs, "run", what_changed(step, print_, manifests), partial)


def what_changed(
    step: RecipeStep, print_: Fingerprint, manifests: list[tuple[Path, dict[str, Any]]]
) -> tuple[str, ...]:
    """How the step differs from the earlier artifact of its name that it has most in common with."""
    earlier = [m for _, m in manifests if m.get("step") == step.name and m.get("kind") == step.step.name]
    if not earlier:
        return ("new",)
    texts = {".".join(leaf.path): leaf.value for leaf in inputs_of(step.config)}
    changes = [
        (differences(m.get("identity", {}), print_.identity, texts), str(m.get("finished"))) for m in earlier
    ]
    fewest = min(len(found) for found, _ in changes)
    nearest = max((entry for entry in changes if len(entry[0]) == fewest), key=lambda entry: entry[1])
    return tuple(nearest[0])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """What changed between two identities, one line a field. texts: how the config writes its inputs."""
    lines = []
    if old.get("version") != new["version"]:
        lines.append(f"version of the step: {old.get('version')} → {new['version']}")
    before, after = flatten(old.get("config", {})), flatten(new["config"])
    for path in [*after, *(path for path in before if path not in after)]:
        was, now = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if was == now:
            continue
        text = texts.get(path, "the input")
        if _is_input(was) and _is_input(now) and was.keys() == now.keys():
            lines.append(
                f"{path}: {text} changed" if "artifact" in now else f"{path}: the content of {text} changed"
            )
        else:
            lines.append(f"{path}: {_show(was, texts.get(path))} → {_show(now, texts.get(path))}")
    return lines


_ABSENT = object()


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data by dotted path; an input, and an empty list or mapping, is one leaf."""
    if isinstance(value, Mapping) and value and not _is_input(value):
        items = value.items()
    elif isinstance(value, list) and value:
        items = {str(i): inner for i, inner in enumerate(value)}.items()
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{path}.{key}" if path else str(key))
    return flat


def _is_input(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) in _INPUT_FORMS


def _show(value: Any, text: str | None) -> str:
    if value is _ABSENT:
        return "(none)"
    if _is_input(value):
        if "text" in value or "code" in value:
            return repr(value.get("text") or value["code"])
        known = value.get("artifact") or value.get("content") or f"{value['model']}@{value['revision']}"
        return text or str(known)[:16]
    return repr(value)


def needed_keys(config: Config, keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """{reference as written: (step's name, its key)} for every reference of a config, in order."""
    found = {}
    for leaf in inputs_of(config):
        reference = read_reference(leaf.value)
        if reference and reference.name in keys and leaf.kind is not None:
            found[leaf.value] = (reference.name, keys[reference.name])
    return found
