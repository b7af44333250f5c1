"""How posttrain is trained and watched, whatever the method: what the comparison fixes in its `train` step.

Imported by the processes of our side (`offline_ours.py`, `rl_ours.py`, `rl_losses_ours.py`).
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from posttrain.common.step import StepContext
from posttrain.training import fit as loop
from posttrain.training.metrics import Metrics
from posttrain.training.offline import Plan
from posttrain.training.train import STEP, TrainConfig

PRECISION = {"bf16": "bfloat16", "f32": "float32"}


def train(args: Namespace, scratch: Path, batch: int, **settings: Any) -> None:
    """Run the `train` step with its defaults, but for `settings` and what the comparison fixes (steps, batch,
    learning rate and its schedule, AdamW's constants).
    """
    fixed = {
        "steps": args.warmup + args.steps,
        "batch_size": batch,
        "optimizer": {"lr": args.lr, "betas": (0.9, 0.999), "warmup": 0.0, "schedule": "constant"},
        "precision": PRECISION[args.dtype],
        "device": "cpu",
    }
    cfg = TrainConfig.model_validate(settings | fixed)
    STEP.run(cfg, StepContext(out=scratch / "out", state=scratch / "state", label=args.method))


def shuffled_back(args: Namespace, source: Path, path: Path, batch: int) -> Path:
    """Write the rows of `source` in an order that the trainer's own shuffle turns into theirs."""
    count = (args.warmup + args.steps) * batch
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    seed = TrainConfig.model_fields["seed"].default
    order = [i for rows in Plan((1,) * count, seed, batch).epoch(0) for i in rows]
    placed = dict(zip(order, lines, strict=True))
    path.write_text("".join(placed[i] + "\n" for i in range(count)), encoding="utf-8")
    return path


@contextlib.contextmanager
def watching(began: Callable[[], None], ended: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Call `began` where the first step begins, and `ended` with its metrics where a step ends."""

    class Watched(Metrics):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            began()

        def write(self, step: int, split: str, values: dict[str, float]) -> None:
            super().write(step, split, values)
            ended(values)

    with mock.patch.object(loop, "Metrics", Watched):
        yield
