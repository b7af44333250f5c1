"""The registry of judges. Others plug in by entry point or dotted path."""

from __future__ import annotations

from posttrain.common.config import Config
from posttrain.feedback.ensemble import RewardEnsemble
from posttrain.feedback.reward_model import RewardModel
from posttrain.feedback.verifiers import ExactMatch, Pattern
from posttrain.feedback.weighted_sum import WeightedSum

JUDGES: dict[str, type[Config]] = {
    "exact_match": ExactMatch,
    "pattern": Pattern,
    "reward_model": RewardModel,
    "reward_ensemble": RewardEnsemble,
    "weighted_sum": WeightedSum,
}
