"""The verb `evaluate`: every model on every task, item by item, and what that says with its intervals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from posttrain.common.chunks import keep_sealed, read_sealed
from posttrain.common.config import Config, ModelRef, Runtime
from posttrain.common.errors import DataError
from posttrain.common.files import atomic, write_json
from posttrain.common.progress import progress
from posttrain.common.step import Step, StepContext
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.task import EvalContext, ModelKind, Outcome
from posttrain.evaluation.tasks import TaskField, TaskUse
from posttrain.feedback.judge_use import account_of
from posttrain.models.precision import Precision


class EvaluateConfig(Config):
    """model: one, a list in the order of the stages, or `{name: model}`; each is compared with the one before
    and with the first. tasks: names or `{name: …, label: …, settings…}`. limit: at most so many items a task,
    the same for every model. sampling: how answers are drawn, where a task does not say.
    """

    model: ModelRef | tuple[ModelRef, ...] | dict[str, ModelRef]
    tasks: tuple[TaskField, ...] = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)
    limit: int | None = Field(None, ge=1)
    sampling: SamplingParams = SamplingParams()
    precision: Precision = "auto"
    device: Annotated[str, Runtime()] = "auto"

    @field_validator("model")
    @classmethod
    def _some(cls, model: Any) -> Any:
        if not model:
            raise ValueError("no model to evaluate")
        return model

    @field_validator("tasks")
    @classmethod
    def _labels_differ(cls, tasks: tuple[TaskUse, ...]) -> tuple[TaskUse, ...]:
        labels = [use.label for use in tasks]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice; give each use its own `label`")
        return tasks


def run(cfg: EvaluateConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `results.jsonl` and `summary.json`. What a killed run finished, task by task, is kept."""
    from posttrain.evaluation.summary import summarise

    models = named_models(cfg.model)
    results: dict[tuple[str, str], list[Outcome] | None] = {}
    kinds: dict[str, ModelKind] = {}
    with progress(ctx.label, len(models) * len(cfg.tasks), "task") as bar:
        for position, (name, path) in enumerate(models.items()):
            label = f"{ctx.label} {name}"
            opened = EvalContext(
                path, cfg.seed, cfg.limit, cfg.sampling, cfg.precision, cfg.device, label, account_of(ctx)
            )
            kinds[name] = opened.kind()
            for number, use in enumerate(cfg.tasks):
                kept = ctx.state / f"{position}-{number}.jsonl"
                results[name, use.label] = _measure(use, opened, kinds[name], kept)
                bar.advance(note=f"{name} · {use.label}")
            opened.close()
    _write_results(ctx.out / "results.jsonl", results)
    summary = summarise(cfg.tasks, models, kinds, results) | {"seed": cfg.seed, "limit": cfg.limit}
    write_json(ctx.out / "summary.json", summary)
    return _for_manifest(summary)


STEP = Step("evaluate", EvaluateConfig, run, version=4)


def named_models(model: str | tuple[str, ...] | Mapping[str, str]) -> dict[str, str]:
    """Readable names: those given, else the step or folder each model came from, told apart by number."""
    if isinstance(model, Mapping):
        return dict(model)
    named: dict[str, str] = {}
    for path in [model] if isinstance(model, str) else model:
        base = name = _name_of(path)
        count = 1
        while name in named:
            count += 1
            name = f"{base} {count}"
        named[name] = path
    return named


def _name_of(path: str) -> str:
    """`store/sft-0123abcd/model` → "sft"; a hub id keeps its last part, without its revision."""
    parts = [part for part in path.rstrip("/").split("/") if part not in ("", ".", "..")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return re.sub(r"(?<=.)(-[0-9a-f]{8,64}|@.*)$", "", parts[-1]) if parts else path


def _measure(use: TaskUse, opened: EvalContext, kind: ModelKind, kept: Path) -> list[Outcome] | None:
    """The outcomes of one task on one model, from `kept` if a killed run wrote them; None: not applicable."""
    if not use.task.applicable(kind):
        return None
    if kept.exists():
        return [Outcome(**json.loads(line)) for line in read_sealed(kept)]
    outcomes = use.task.evaluate(opened)
    _check(use, outcomes)
    keep_sealed(kept, [_line(asdict(outcome)).encode() for outcome in outcomes])
    return outcomes


def _check(use: TaskUse, outcomes: list[Outcome]) -> None:
    """Raise DataError for outcomes that could not be averaged or paired honestly."""
    seen: set[str] = set()
    for outcome in outcomes:
        if outcome.item in seen:
            raise DataError(f"task {use.label}: item '{outcome.item}' stands twice; ids must be unique")
        seen.add(outcome.item)
        for metric, value in outcome.metrics.items():
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"task {use.label}: {metric} of item '{outcome.item}' is {value}; a metric is a "
                    "finite number, or None where there is none"
                )
    if not any(use.task.headline in outcome.metrics for outcome in outcomes):
        raise DataError(
            f"task {use.label}: {len(outcomes)} items, none with its headline '{use.task.headline}'"
        )


def _write_results(path: Path, results: Mapping[tuple[str, str], list[Outcome] | None]) -> None:
    with atomic(path) as f:
        for (model, task), outcomes in results.items():
            for outcome in outcomes or ():
                f.write(_line({"model": model, "task": task, **asdict(outcome)}))


def _line(value: dict[str, Any]) -> str:
    """JSON on one line; ASCII, because sampled text may hold line separators and halves of characters."""
    return json.dumps(value, allow_nan=False) + "\n"


def _for_manifest(summary: dict[str, Any]) -> dict[str, Any]:
    headlines = {task["label"]: task["headline"] for task in summary["tasks"]}
    rows = [e for e in summary["estimates"] if e["group"] == "" and e["metric"] == headlines[e["task"]]]
    return {
        "items": sum(e["n"] + e["missing"] for e in rows),
        "missing": sum(e["missing"] for e in rows),
        "headline": {
            model["name"]: {
                e["task"]: [e["mean"], e["low"], e["high"]] for e in rows if e["model"] == model["name"]
            }
            for model in summary["models"]
        },
    }
