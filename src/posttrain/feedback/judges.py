"""The registry of judges. Others plug in by entry point or dotted path."""

from __future__ import annotations

from posttrain.common.config import Config
from posttrain.feedback.alias_match import AliasMatch
from posttrain.feedback.code import PythonTests
from posttrain.feedback.ensemble import RewardEnsemble
from posttrain.feedback.function import Function
from posttrain.feedback.instructions.judge import Instructions
from posttrain.feedback.llm_judge import Llm
from posttrain.feedback.maths.judge import Maths
from posttrain.feedback.multiple_choice import MultipleChoice
from posttrain.feedback.reward_model import RewardModel
from posttrain.feedback.verifiers import ExactMatch, Pattern
from posttrain.feedback.weighted_sum import WeightedSum

JUDGES: dict[str, type[Config]] = {
    "exact_match": ExactMatch,
    "pattern": Pattern,
    "maths": Maths,
    "alias_match": AliasMatch,
    "multiple_choice": MultipleChoice,
    "instructions": Instructions,
    "python_tests": PythonTests,
    "reward_model": RewardModel,
    "reward_ensemble": RewardEnsemble,
    "weighted_sum": WeightedSum,
    "function": Function,
    "llm": Llm,
}
