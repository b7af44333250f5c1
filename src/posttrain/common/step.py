"""The seam between the rooms and the flow: a step is a config, a function and a version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common.config import Config


@dataclass(frozen=True)
class StepContext:
    """Where one run of a step writes.

    out: the artifact's folder; it may hold leftovers of a killed run, which the step overwrites.
    state: scratch that survives a kill and is deleted once the artifact is whole.
    label: what progress bars call the step.
    cache: a folder shared by all steps of a store, for what is worth keeping between them (reference
    log-probs); None where there is no store, then `state` serves.
    """

    out: Path
    state: Path
    label: str
    cache: Path | None = None


@dataclass(frozen=True)
class Step:
    """One verb. `run` writes into `ctx.out` and returns a JSON-able summary for the manifest.

    version: raise it when the step's code changes what it produces; it is part of the key. check: what is
    wrong with a config beside those of all the steps behind it, {name: config}: (field, what and what to do)
    each, told before anything runs.
    """

    name: str
    config: type[Config]
    run: Callable[[Any, StepContext], dict[str, Any]]
    version: int = 1
    check: Callable[[Any, Mapping[str, Config]], Iterable[tuple[tuple[str, ...], str]]] | None = None
