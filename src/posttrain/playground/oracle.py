"""The oracle: judges any answer to the playground's prompts exactly, because the world's truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from posttrain.common.config import Config
from posttrain.feedback.judge import Verdict
from posttrain.playground.areas import AREAS
from posttrain.playground.question import Grade, spec_of
from posttrain.records import Prompt, Response


def grade(prompt: Prompt, response: Response) -> Grade:
    """What is true of a response, whether it was cut off or not.

    Raises DataError for a prompt that is not the playground's.
    """
    world, area, key = spec_of(prompt)
    return AREAS[area].grade(world, key, response.text)


class Oracle(Config):
    """The judge `playground/oracle`. It needs no seed: every prompt of the playground names its world."""

    version: ClassVar[int] = 1  # part of a step's key: raise it when grades change

    def open(self) -> OracleJudge:
        return OracleJudge()


class OracleJudge:
    """Scores in [0, 1] with parts; no answer (None) for a response that was cut off."""

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return [verdict(prompt, response) for prompt, response in items]


def verdict(prompt: Prompt, response: Response) -> Verdict:
    """The oracle's verdict on one response.

    Raises DataError for a prompt that is not the playground's.
    """
    if response.finish == "length":
        return Verdict(None, "cut off")
    found = grade(prompt, response)
    parts = {"correct": found.correct, **found.manner, "clean": found.clean}
    return Verdict(found.score, found.outcome, parts)
