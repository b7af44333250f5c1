"""How a trainer of TRL is set up and timed, whatever the method.

Imported by the processes of TRL's side (`offline_trl.py`, `rl_trl.py`, `rl_losses_trl.py`), in TRL's own
environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Steps
from transformers import TrainerCallback


def settings(scratch: Path, dtype: str, steps: int, lr: float) -> dict[str, Any]:
    """What every trainer is told: on the CPU, so many steps, a log line each, no checkpoints or reports."""
    return {
        "output_dir": str(scratch),
        "use_cpu": True,
        "bf16": dtype == "bf16",
        "max_steps": steps,
        "learning_rate": lr,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def rows(path: Path, count: int) -> Dataset:
    """The first `count` rows of a file."""
    with open(path) as f:
        lines = [json.loads(line) for line in f]
    return Dataset.from_list(lines[:count])


def train(trainer: Any, warmup: int, profiled: bool) -> tuple[Steps, Any]:
    """Train; the steps' clock, and the profile where one was asked for."""
    steps = Steps(warmup)
    trainer.add_callback(Clock(steps))
    if not profiled:
        trainer.train()
        return steps, None
    with torch.profiler.profile(record_shapes=True) as profile:
        trainer.train()
    return steps, profile


class Clock(TrainerCallback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.end()
