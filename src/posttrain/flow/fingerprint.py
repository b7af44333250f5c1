"""The key of a step: a hash over all that determines its result, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.common.manifest import NAME
from posttrain.common.own_code import load_dotted, source_hash
from posttrain.common.step import Step
from posttrain.flow.artifact import UNFINISHED
from posttrain.flow.hashing import Hasher
from posttrain.flow.hub import is_hub_id, revision
from posttrain.flow.inputs import Leaf, Pinned, plain
from posttrain.flow.references import Reference, read_reference


@dataclass(frozen=True)
class Outside:
    """An input that no step of the recipe makes.

    value: as the config has it. identity: what stands for it in the key. pinned: what the step is given.
    path: where it lies, None for a hub model. stamp: of the content that was hashed (`hashing.stamp`).
    """

    value: str
    identity: Mapping[str, str]
    pinned: str | Pinned
    path: Path | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """key: sha256 in hex over `identity`. outside: the inputs from outside the recipe, by their text."""

    key: str
    identity: dict[str, Any]
    outside: dict[str, Outside] = field(default_factory=dict)


def canonical(value: Any) -> bytes:
    """The one JSON text of plain data; mappings keep their order, because a step may depend on it."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def key_of(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(identity)).hexdigest()


def fingerprint(
    step: Step,
    config: Config,
    key_of_step: Callable[[str], str | None],
    outside: Callable[[Leaf], Outside],
) -> Fingerprint:
    """What determines the result of `step` under `config`.

    key_of_step: the key of a step of the recipe, None for a name that is none.
    outside: identifies an input from outside the recipe.
    Raises ConfigError for an input that does not exist or a value without a stable form.
    """
    used: dict[str, Outside] = {}

    def identify(leaf: Leaf) -> Any:
        reference = read_reference(leaf.value)
        key = key_of_step(reference.name) if reference else None
        if reference and key:
            return made(key, reference)
        if not leaf.kind:
            return leaf.value
        try:
            found = outside(leaf)
        except ConfigError as e:
            raise ConfigError(f"{'.'.join(leaf.path)}: {e}") from None
        used[leaf.value] = found
        return dict(found.identity)

    form = plain(config, identify)
    identity = {"kind": step.name, "version": step.version, "config": form}
    return Fingerprint(key_of(identity), identity, used)


def made(key: str, reference: Reference) -> dict[str, str]:
    """What stands for `@step/file` in a key."""
    return {"artifact": key, "file": reference.file} if reference.file else {"artifact": key}


class Outsiders:
    """Identifies inputs from outside a recipe, each once: local paths by content, hub models by revision."""

    def __init__(self, hasher: Hasher) -> None:
        self.hasher = hasher
        self.known: dict[tuple[str, str | None, str], Outside] = {}

    def __call__(self, leaf: Leaf) -> Outside:
        """Raises ConfigError where there is neither such a path nor such a model."""
        asked = (leaf.value, leaf.kind, leaf.revision)
        if asked not in self.known:
            self.known[asked] = self._identify(*asked)
        return self.known[asked]

    def _identify(self, value: str, kind: str | None, at: str) -> Outside:
        if value.startswith("@"):
            raise ConfigError(
                f"'{value}' names a step, and there is no recipe here; give a path (or ./{value})"
            )
        if kind == "code":
            source = source_hash(load_dotted(value, f"'{value}'"))
            return Outside(value, {"code": value, "source": source or ""}, value)
        path = Path(os.path.expanduser(value))
        if _exists(path):
            if (path / UNFINISHED).exists() and not (path / NAME).exists():
                raise ConfigError(
                    f"'{value}' is the output of a step that has not finished; let it finish first"
                )
            content = self.hasher.content(path)
            return Outside(value, {"content": content.sha256}, str(path), path.resolve(), content.stamp)
        if kind == "text":
            return Outside(value, {"text": value}, value)
        if kind == "model" and is_hub_id(value):
            name, _, named = value.partition("@")
            commit = revision(name, named or at or "main")
            return Outside(value, {"model": name, "revision": commit}, Pinned(name, commit))
        wanted = (
            "no such folder, and no hub model of this form" if kind == "model" else "no such file or folder"
        )
        raise ConfigError(f"'{value}': {wanted} (paths count from {Path.cwd()})")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text too long or too odd for a path
        return False
