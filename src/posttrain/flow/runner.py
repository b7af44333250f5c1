"""Running a plan: each step is looked up again under its lock, and made where it is not there."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.common.errors import PosttrainError, StoreError
from posttrain.flow.artifact import (
    UNFINISHED,
    Order,
    check_artifact,
    make,
    set_aside,
    tidy,
    unfinished,
    untidy,
)
from posttrain.flow.executors.local import Executor, LocalExecutor
from posttrain.flow.handover import check_unchanged, describe_outside, resolve
from posttrain.flow.plan import Planned, make_plan, needed_keys
from posttrain.flow.recipe import Recipe
from posttrain.flow.store import Store

Say = Callable[[str], None]


class StepFailed(PosttrainError):
    """A step of a run failed; its cause is the error itself. step: its name."""

    def __init__(self, step: str, cause: BaseException) -> None:
        said = str(cause) if isinstance(cause, PosttrainError) else f"{type(cause).__name__}: {cause}"
        super().__init__(f"step '{step}' failed: {said}")
        self.step = step


@dataclass(frozen=True)
class Job:
    """One step for an executor. needs: names of the jobs to be done before. force: make it again."""

    planned: Planned
    force: bool = False

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def needs(self) -> tuple[str, ...]:
        return self.planned.step.needs


@dataclass(frozen=True)
class Done:
    """What became of a step. seconds: spent in this run."""

    name: str
    key: str
    folder: Path
    outcome: Literal["hit", "run", "resumed"]
    seconds: float
    summary: Mapping[str, Any]


def run_recipe(
    recipe: Recipe,
    store: Store,
    *,
    force: Collection[str] = (),
    executor: Executor | None = None,
    say: Say = lambda line: None,
) -> list[Done]:
    """Run what the store does not have, in order. force: names of steps to make again.

    Raises ConfigError before anything runs, StepFailed for the first step that fails; what is done is kept.
    """
    forced = recipe.select(force)
    plan = make_plan(recipe, store)
    again = {planned.key: planned.name for planned in reversed(plan) if planned.name in forced}
    jobs = [Job(planned, again.get(planned.key) == planned.name) for planned in plan]
    running = _Run(uuid.uuid4().hex[:12], store, say, tuple(job.name for job in jobs))
    steps = {planned.name: planned.key for planned in plan}
    running.log("start", recipe=os.path.abspath(recipe.name), steps=steps)
    return list((executor or LocalExecutor()).run(jobs, running.work))


@dataclass(frozen=True)
class _Run:
    """One run of a recipe, as the store's log tells of it. order: the names of its steps."""

    id: str
    store: Store
    say: Say
    order: tuple[str, ...]

    def work(self, job: Job) -> Done:
        began = time.monotonic()
        place = f"[{self.order.index(job.name) + 1}/{len(self.order)}] {job.name}"
        try:
            done = perform(job, self.store, lambda line: self.say(f"{place}: {line}"))
        except BaseException as e:
            outcome = "failed" if isinstance(e, Exception) else "interrupted"
            with contextlib.suppress(
                OSError, StoreError
            ):  # the error on its way up matters more than the log
                self.log_step(job, outcome, time.monotonic() - began, error=str(e))
            self.say(f"{place}: {outcome}")
            if isinstance(e, Exception):
                raise StepFailed(job.name, e) from e
            raise
        self.log_step(job, done.outcome, done.seconds)
        return done

    def log_step(self, job: Job, outcome: str, seconds: float, **more: str) -> None:
        kind = job.planned.step.step.name
        what = {"step": job.name, "kind": kind, "key": job.planned.key, "outcome": outcome}
        self.log("step", **what, seconds=round(seconds, 3), **more)

    def log(self, event: str, **said: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.store.log({"run": self.id, "event": event, "at": now, **said})


def perform(job: Job, store: Store, say: Say) -> Done:
    """Find the artifact of one step, or make it, holding its lock."""
    planned, began = job.planned, time.monotonic()
    if not job.force:
        found = _hit(planned, store, say, began)
        if found:
            return found
    with store.lock(planned.key, planned.name, say):
        found = None if job.force else _hit(planned, store, say, began)
        if found:
            return found
        folder = _clear(job, store, say)
        resumed = unfinished(folder) is not None
        say(f"resuming in {folder}" if resumed else f"running ({planned.step.step.name})")
        manifest = make(folder, _order(planned, store, folder))
    seconds = time.monotonic() - began
    say(f"done in {seconds:,.1f} s")
    outcome: Literal["run", "resumed"] = "resumed" if resumed else "run"
    return Done(planned.name, planned.key, folder, outcome, seconds, manifest["summary"])


def _hit(planned: Planned, store: Store, say: Say, began: float) -> Done | None:
    folder = store.find(planned.key)
    if folder is None:
        return None
    manifest = check_artifact(folder)
    if untidy(folder):
        tidy(folder)
    say(f"hit {folder.name}")
    return Done(planned.name, planned.key, folder, "hit", time.monotonic() - began, manifest["summary"])


def _clear(job: Job, store: Store, say: Say) -> Path:
    """Where to make the artifact: in what a killed run left to resume, else in a place with nothing in it."""
    key = job.planned.key
    whole, partial = store.find(key), store.partial(key)
    if whole is not None:
        set_aside(whole, store.root)
    if partial is not None and (job.force or unfinished(partial) is None):
        if not job.force:
            say(f"what a run left in {partial} cannot be gone on with ({UNFINISHED} is missing or damaged)")
        set_aside(partial, store.root)
        partial = None
    return partial or store.folder(job.name, key)


def _order(planned: Planned, store: Store, folder: Path) -> Order:
    step, outside = planned.step, planned.print.outside
    references = needed_keys(step.config, planned.keys)
    sources = {text: _source(name, key, store) for text, (name, key) in references.items()}
    config = resolve(step.config, sources, outside)
    inputs: dict[str, Any] = {
        text: {
            "kind": "artifact",
            "step": name,
            "key": key,
            "path": os.path.relpath(sources[text], folder),
        }
        for text, (name, key) in references.items()
    }
    return Order(
        step=step.name,
        kind=step.step.name,
        version=step.step.version,
        key=planned.key,
        identity=planned.print.identity,
        config=step.config.model_dump(mode="json", serialize_as_any=True),
        inputs=inputs | describe_outside(outside),
        run=lambda ctx: step.step.run(config, ctx),
        check=lambda: check_unchanged(outside),
        cache=store.root / ".cache",
    )


def _source(name: str, key: str, store: Store) -> Path:
    folder = store.find(key)
    if folder is None:
        raise StoreError(
            f"the artifact of '{name}' has gone from {store.root} since the run began; run again"
        )
    return folder
