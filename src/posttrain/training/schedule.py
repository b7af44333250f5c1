"""Optimizer settings, and the learning rate at each step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from posttrain.common.config import Config


class OptimizerConfig(Config):
    """AdamW (arXiv 1711.05101) with warm-up, then a schedule down to `final_lr` times the peak.

    lr: peak learning rate; None means the objective's own recommended one. warmup: share of all steps.
    clip: largest gradient norm, 0 for none. ema: decay of the moving average that is saved in place of the
    last weights, None for none.
    """

    lr: float | None = Field(None, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.05, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr: float = Field(0.1, ge=0, le=1)
    clip: float = Field(1.0, ge=0)
    ema: float | None = Field(None, gt=0, lt=1)


def lr_factor(cfg: OptimizerConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0) of `total`."""
    warmup = round(cfg.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if cfg.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return cfg.final_lr + (1 - cfg.final_lr) * shape
