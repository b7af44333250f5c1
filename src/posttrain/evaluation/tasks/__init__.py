"""What can be measured: one task a file, and the registry that recipes name them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, model_serializer

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.evaluation.task import TaskConfig
from posttrain.evaluation.tasks.best_of_n import BestOfN
from posttrain.evaluation.tasks.heldout_loss import HeldoutLoss
from posttrain.evaluation.tasks.judged import Judged
from posttrain.evaluation.tasks.kl import KL
from posttrain.evaluation.tasks.pair_accuracy import PairAccuracy
from posttrain.evaluation.tasks.reward_report import RewardReport

TASKS: dict[str, type[TaskConfig]] = {
    "heldout_loss": HeldoutLoss,
    "pair_accuracy": PairAccuracy,
    "reward_report": RewardReport,
    "judged": Judged,
    "best_of_n": BestOfN,
    "kl": KL,
}


class TaskUse(Config):
    """A task as a recipe uses it: written `name`, or `{name: …, label: …, settings…}`.

    label: what results and the page call it, the name where empty; tells two uses of one task apart.
    """

    name: str
    label: str
    settings: SerializeAsAny[Config]

    @property
    def task(self) -> Any:
        """The task itself (`evaluation.task.Task`)."""
        return self.settings

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        return {"name": plain["name"], "label": plain["label"], **plain["settings"]}


def read_task(value: Any) -> Any:
    """A `TaskUse` from what a recipe or a script gives: a name, a mapping, or a task's own config.

    Raises ValueError with what to change; pydantic puts the place in front.
    """
    if isinstance(value, TaskUse):
        return value
    if isinstance(value, Config):
        return TaskUse(name=_name_of(value), label=_name_of(value), settings=value)
    spec = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = spec.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"a task is a name or a mapping with a 'name', got {value!r}")
    label = spec.pop("label", name)
    try:
        return TaskUse(name=name, label=label, settings=parse(_task_class(name), spec, f"task {name}"))
    except ConfigError as e:
        raise ValueError(str(e)) from None


def _task_class(name: str) -> type[Config]:
    found = resolve("tasks", name, TASKS)
    if isinstance(found, type) and issubclass(found, Config) and hasattr(found, "evaluate"):
        return found
    raise ConfigError(f"'{name}' is a {type(found).__name__}, not a task: a Config class with `evaluate`")


def _name_of(task: Config) -> str:
    for name, cls in TASKS.items():
        if type(task) is cls:
            return name
    return f"{type(task).__module__}:{type(task).__qualname__}"


TaskField = Annotated[TaskUse, BeforeValidator(read_task)]
