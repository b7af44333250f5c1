"""What a report asks for that its evaluations will not hold: told before anything runs, as far as it is known
then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.common.config import Config
from posttrain.report.ablation_config import AblationConfig
from posttrain.report.trades import lacks

if TYPE_CHECKING:
    from posttrain.evaluation.suite import EvaluateConfig
    from posttrain.report.page import ReportConfig

Mistake = tuple[tuple[str, ...], str]


def mistakes_of(cfg: ReportConfig, behind: Mapping[str, Config]) -> Iterator[Mistake]:
    """behind: the steps of the recipe that the inputs are made from. (field, what is wrong) each.

    Groups of a task, and the metrics of most, are known once it has run.
    """
    from posttrain.evaluation.suite import EvaluateConfig

    evaluations = {name: one for name, one in behind.items() if isinstance(one, EvaluateConfig)}
    whole = all(given.startswith("@") for given in cfg.inputs)  # nothing comes from outside the recipe
    labels = [use.label for one in evaluations.values() for use in one.tasks]
    if cfg.frontier is not None and whole:
        yield from _told(("frontier",), lacks("task", cfg.frontier, labels, ", ".join(evaluations)))
    if cfg.ablation is None:
        return
    compared = {name: found for name, one in evaluations.items() if len(found := columns_of(one)) > 1}
    if not compared and whole:
        yield ("ablation",), "no evaluation among the inputs holds two models or more to compare"
    for name, columns in compared.items():
        yield from _of_table(cfg.ablation, evaluations[name], columns, name)


def columns_of(cfg: EvaluateConfig) -> list[str]:
    """The names that its models will have."""
    from posttrain.evaluation.suite import named_models

    if isinstance(cfg.model, Mapping):
        return list(cfg.model)
    paths = (cfg.model,) if isinstance(cfg.model, str) else cfg.model
    return list(named_models(tuple(_as_stored(path) for path in paths)))


def _as_stored(path: str) -> str:
    """`@step/file` as the folder that it will be."""
    step, _, file = path[1:].partition("/")
    return f"store/{step}-{'0' * 8}/{file}" if path.startswith("@") else path


def _of_table(
    asked: AblationConfig, evaluation: EvaluateConfig, columns: Sequence[str], name: str
) -> Iterator[Mistake]:
    tasks = {use.label: use.task for use in evaluation.tasks}
    for field, given in (("baseline", (asked.baseline,)), ("watch", asked.watch)):
        for column in given:
            if column is not None:
                yield from _told(("ablation", field), lacks("column", column, columns, name))
    for label, metrics in asked.metrics.items():
        here = ("ablation", "metrics", label)
        yield from _told(here, lacks("task", label, list(tasks), name))
        measures: frozenset[str] | None = getattr(tasks.get(label), "measures", lambda: None)()
        for metric in metrics if measures else ():
            yield from _told(here, lacks("metric", metric, sorted(measures or ()), label))
    failing = asked.fail_on_regression
    for label in failing if isinstance(failing, tuple) else ():
        if not any(label == task or label.startswith(f"{task}/") for task in tasks):
            yield from _told(("ablation", "fail_on_regression"), lacks("task", label, list(tasks), name))


def _told(field: tuple[str, ...], wrong: str | None) -> Iterator[Mistake]:
    if wrong:
        yield field, wrong
