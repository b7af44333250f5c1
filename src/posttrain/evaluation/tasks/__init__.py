"""What can be measured: one task a file, and the registry that recipes name them by."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from posttrain.common.named import Kind, Use
from posttrain.evaluation.task import TaskConfig
from posttrain.evaluation.tasks.best_of_n import BestOfN
from posttrain.evaluation.tasks.heldout_loss import HeldoutLoss
from posttrain.evaluation.tasks.judge_report import JudgeReport
from posttrain.evaluation.tasks.judged import Judged
from posttrain.evaluation.tasks.kl import KL
from posttrain.evaluation.tasks.lm_eval import LmEval, read_name
from posttrain.evaluation.tasks.pair_accuracy import PairAccuracy
from posttrain.evaluation.tasks.pass_at_k import PassAtK
from posttrain.evaluation.tasks.reward_report import RewardReport
from posttrain.evaluation.tasks.short_facts import ShortFacts

TASKS: dict[str, type[TaskConfig]] = {
    "heldout_loss": HeldoutLoss,
    "pair_accuracy": PairAccuracy,
    "reward_report": RewardReport,
    "judged": Judged,
    "judge_report": JudgeReport,
    "short_facts": ShortFacts,
    "best_of_n": BestOfN,
    "pass_at_k": PassAtK,
    "kl": KL,
    "lm_eval": LmEval,
}


_KIND = Kind("task", lambda: TASKS, ("evaluate",))


class TaskUse(Use):
    """A task as a recipe uses it.

    label: what results and the page call it, the name where not given; tells two uses of one task apart.
    """

    label: str

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"label": data.get("name"), **data}

    @property
    def task(self) -> Any:
        """The task itself (`evaluation.task.Task`)."""
        return self.settings


def read_task(value: Any) -> TaskUse:
    """A `TaskUse` from a name, a mapping or a task's own config. Raises ValueError."""
    return _KIND.read(TaskUse, read_name(value))


TaskField = Annotated[TaskUse, BeforeValidator(read_task)]
