"""Lists of ranked or scored responses to comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

from posttrain.formats.build import Origin, attempt, comparison
from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Prompt, Response

Which = Literal["best-vs-each", "best-vs-worst", "all"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One response of several to the same prompt. score: higher is better, in the judge's own units."""

    response: Response
    score: float
    maker: str
    field: str


def comparisons(
    asked: Prompt, scored: Sequence[Scored], which: Which, origin: Origin, *, aspect: str, judge: str
) -> Iterator[Comparison | RowError]:
    """The pairs that `which` names (ReadOptions.pairs); strength is the distance of the two scores.

    Equal scores are no preference: such a pair is reported as left out.
    """
    for better, worse in pairs(sorted(scored, key=lambda s: -s.score), which):
        if better.score == worse.score:
            yield RowError(
                worse.field, f"equal scores: no preference between it and {better.field}", by_choice=True
            )
            continue
        makers = {"chosen": better.maker, "rejected": worse.maker}
        make = partial(
            comparison,
            asked,
            better.response,
            worse.response,
            origin,
            makers={part: maker for part, maker in makers.items() if maker},
            strength=better.score - worse.score,
            aspect=aspect,
            judge=judge,
        )
        yield attempt(make)


def pairs(ordered: Sequence[Scored], which: Which) -> list[tuple[Scored, Scored]]:
    """Pairs of a list ordered from best to worst."""
    every = list(combinations(ordered, 2))
    if which == "best-vs-each":
        return every[: len(ordered) - 1]
    if which == "best-vs-worst":
        return every[len(ordered) - 2 : len(ordered) - 1]
    return every
