"""The judges of the online benchmarks. Imported by the process of `rl_ours.py`, whose config names them as
`rl_judges:Name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl_workload import evens

from posttrain.common.config import Config
from posttrain.feedback.judge import Judge, Verdict
from posttrain.feedback.reward_model import RewardModel
from posttrain.models.spec import SpecField
from posttrain.records import Prompt, Response


class Evens(Config):
    """The reward that costs nothing."""

    def open(self) -> Evens:
        return self

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [Verdict(evens(response.token_ids or ())) for _, response in items]


class Whole(Config):
    """A reward model that takes every answer for a whole one: here none ends by itself, and a reward model
    gives no score to what was cut off.
    """

    model: SpecField
    precision: Any = "auto"

    def open(self) -> _Whole:
        return _Whole(RewardModel(model=self.model, precision=self.precision, device="cpu").open())


class _Whole:
    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return self.judge.score(
            [(prompt, response.model_copy(update={"finish": "stop"})) for prompt, response in items]
        )
