"""What every kind of verifiable instruction is: its parameters, and a rule on the response."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.common.config import Config

Relation = Literal["less than", "at least"]
Words = Annotated[str, Field(pattern=r"\S")]  # a blank would be found in every response


class Checker(Config):
    """One instruction. Its fields are the instruction's parameters, under the names IFEval gives them."""

    def followed(self, text: str) -> bool | None:
        """Whether the response follows it; None where that cannot be told."""
        raise NotImplementedError


def holds(count: int, relation: Relation, bound: int) -> bool:
    """Whether a count is less than a bound, or at least it."""
    return count < bound if relation == "less than" else count >= bound
