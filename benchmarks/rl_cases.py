"""The losses that are compared on given tensors: each case as either side's settings say it. Imported by
`rl.py` and by the processes of either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One objective. posttrain, trl: settings of either side's config. per_length: TRL divides by the longest
    answer there may be, a constant that ours leaves to the learning rate.

    computes_reference: each side computes the reference's log-probs from the reference's weights; else they
    are given. answer: for KTO, which of each prompt's answers is trained on, from 0; None for all of them in
    groups.
    """

    posttrain: dict[str, Any]
    trl: dict[str, Any]
    per_length: bool = False
    computes_reference: bool = False
    answer: int | None = None

    @property
    def estimates_reference_point(self) -> bool:
        return self.trl["loss_type"] == "kto"


WEIGHTED = {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.9}
# TRL by default multiplies the KL by the ratio (DeepSeek-V3.2), which none of the published forms does.
PLAIN: dict[str, Any] = {"use_bias_correction_kl": False}

CASES = {
    "grpo": Case({"name": "grpo", "kl": 0.04}, {"loss_type": "grpo", "beta": 0.04, **PLAIN}),
    "grpo, own reference": Case(
        {"name": "grpo", "kl": 0.2},
        {"loss_type": "grpo", "beta": 0.2, **PLAIN},
        computes_reference=True,
    ),
    "dapo": Case(
        {"name": "grpo", "kl": 0.0, "normalise": "tokens", "clip_high": 0.28},
        {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
    ),
    "dapo with KL, narrow clip": Case(
        {"name": "grpo", "kl": 0.1, "normalise": "tokens", "clip": 0.1, "clip_high": 0.15},
        {"loss_type": "dapo", "beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.15, **PLAIN},
    ),
    "dr_grpo": Case(
        {"name": "grpo", "kl": 0.04, "normalise": "sum", "scale": False},
        {"loss_type": "dr_grpo", "beta": 0.04, "scale_rewards": "none", **PLAIN},
        per_length=True,
    ),
    "gspo": Case(
        {"name": "grpo", "kl": 0.0, "ratio": "sequence", "clip": 0.01, "clip_high": 0.02},
        {
            "loss_type": "grpo",
            "beta": 0.0,
            "importance_sampling_level": "sequence",
            "epsilon": 0.01,
            "epsilon_high": 0.02,
        },
    ),
    # of the benchmark's seed the second answers have a reference point of 1.3, the first one that is clamped
    "kto": Case(
        {"name": "kto", **WEIGHTED}, {"loss_type": "kto", **WEIGHTED}, computes_reference=True, answer=1
    ),
    "kto, clamped reference point": Case(
        {"name": "kto", **WEIGHTED}, {"loss_type": "kto", **WEIGHTED}, computes_reference=True, answer=0
    ),
    "kto, reference point 0": Case(
        {"name": "kto", "beta": 0.1, "reference_point": "zero"},
        {"loss_type": "apo_zero_unpaired", "beta": 0.1},
        computes_reference=True,
        answer=1,
    ),
}
