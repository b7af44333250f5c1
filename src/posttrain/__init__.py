"""posttrain: the whole post-training of language models as one cached, resumable recipe.

    import posttrain
    from posttrain import DPO

    dpo = posttrain.train(method=DPO(beta=0.1), model="Qwen/Qwen3-0.6B", data="pairs.jsonl", out="runs/dpo")
    held_out = {"name": "pair_accuracy", "data": "heldout.jsonl"}
    posttrain.evaluate(model=dpo.out, tasks=[held_out], out="runs/score")

Names are imported when they are first used, so that `import posttrain` is quick.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

import posttrain.report as _report_room
from posttrain.common.version import VERSION

__version__ = VERSION


_WHERE = {
    "curate": "posttrain.flow.api",
    "decontaminate": "posttrain.flow.api",
    "tokenizer": "posttrain.flow.api",
    "train": "posttrain.flow.api",
    "sample": "posttrain.flow.api",
    "choose": "posttrain.flow.api",
    "judge": "posttrain.flow.api",
    "pivotal": "posttrain.flow.api",
    "probe": "posttrain.flow.api",
    "bogus": "posttrain.flow.api",
    "refusals": "posttrain.flow.api",
    "evaluate": "posttrain.flow.api",
    "gate": "posttrain.flow.api",
    "run_recipe": "posttrain.flow.api",
    "load_model": "posttrain.models.load",
    "Pretrain": "posttrain.training.methods.pretrain",
    "SFT": "posttrain.training.methods.sft",
    "Reward": "posttrain.training.methods.reward",
    "DPO": "posttrain.training.methods.dpo",
    "KTO": "posttrain.training.methods.kto",
    "PPO": "posttrain.training.methods.ppo",
    "GRPO": "posttrain.training.methods.grpo",
    "RLOO": "posttrain.training.methods.rloo",
    "PosttrainError": "posttrain.common.errors",
}

if TYPE_CHECKING:
    from posttrain.common.errors import PosttrainError
    from posttrain.flow.api import (
        bogus,
        choose,
        curate,
        decontaminate,
        evaluate,
        gate,
        judge,
        pivotal,
        probe,
        refusals,
        run_recipe,
        sample,
        tokenizer,
        train,
    )
    from posttrain.models.load import load_model
    from posttrain.training.methods.dpo import DPO
    from posttrain.training.methods.grpo import GRPO
    from posttrain.training.methods.kto import KTO
    from posttrain.training.methods.ppo import PPO
    from posttrain.training.methods.pretrain import Pretrain
    from posttrain.training.methods.reward import Reward
    from posttrain.training.methods.rloo import RLOO
    from posttrain.training.methods.sft import SFT

__all__ = [
    "DPO",
    "GRPO",
    "KTO",
    "PPO",
    "RLOO",
    "SFT",
    "PosttrainError",
    "Pretrain",
    "Reward",
    "bogus",
    "choose",
    "curate",
    "decontaminate",
    "evaluate",
    "gate",
    "judge",
    "load_model",
    "pivotal",
    "probe",
    "refusals",
    "report",
    "run_recipe",
    "sample",
    "tokenizer",
    "train",
]


class _Room(types.ModuleType):
    """`posttrain.report` is a room of the package and a verb of its API: a module that can be called."""

    def __call__(self, **fields: Any) -> Any:
        from posttrain.flow.api import report

        return report(**fields)


_report_room.__class__ = _Room
report = _report_room


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'posttrain' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
