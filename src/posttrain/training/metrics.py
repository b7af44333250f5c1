"""Metrics out: metrics.jsonl always, TensorBoard or W&B where asked for."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.common.errors import ConfigError

Tracker = Literal["tensorboard", "wandb"]


class Metrics:
    """Appends a line a report to metrics.jsonl and hands it to the trackers.

    start: how many lines of an interrupted run still hold; later ones are cut off. step: where it goes on.
    Use as a context manager. A number that is not finite becomes null.
    """

    def __init__(
        self, folder: Path, trackers: Sequence[Tracker], label: str, start: int = 0, step: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.lines = self._cut(start)
        self.trackers = [_open_tracker(name, folder, label, step) for name in trackers]

    def _cut(self, lines: int) -> int:
        """Drop what was written after the checkpoint this run goes on from."""
        self.file.seek(0)
        kept = list(itertools.islice(self.file, lines))
        self.file.truncate(sum(len(line.encode()) for line in kept))
        return len(kept)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": split, **known}) + "\n")
        self.file.flush()
        self.lines += 1
        for tracker in self.trackers:
            tracker(step, {f"{split}/{name}": value for name, value in values.items()})

    def sync(self) -> int:
        """Force the lines to the disk; returns how many there are."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.lines

    def close(self) -> None:
        self.file.close()
        for tracker in self.trackers:
            tracker(0, None)


def _open_tracker(name: Tracker, folder: Path, label: str, step: int) -> Any:
    try:
        return _tensorboard(folder, step) if name == "tensorboard" else _wandb(folder, label)
    except ImportError as e:
        raise ConfigError(f"log: {name} is not installed ({e}); pip install {name}") from e


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(step: int, values: dict[str, float] | None) -> None:
        if values is None:
            writer.close()
            return
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return write


def _wandb(folder: Path, label: str) -> Any:
    import wandb

    run = wandb.init(project="posttrain", name=label, dir=str(folder))

    def write(step: int, values: dict[str, float] | None) -> None:
        if values is None:
            run.finish()
        else:
            run.log(values, step=step)

    return write
