"""All searches advance together: what they want at one level is asked for at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from posttrain.feedback.pivotal.rollouts import Ask, Roller, Rollout

T = TypeVar("T")


def drive(searches: Sequence[Generator[list[Ask], list[list[Rollout]], T]], roll: Roller) -> list[T]:
    """Run all searches to their end; what each returned."""
    results: dict[int, T] = {}
    wanted: dict[int, list[Ask]] = {}

    def advance(i: int, came: list[list[Rollout]] | None) -> None:
        wanted.pop(i, None)
        try:
            wanted[i] = next(searches[i]) if came is None else searches[i].send(came)
        except StopIteration as e:
            results[i] = e.value

    for i in range(len(searches)):
        advance(i, None)
    while wanted:
        level = sorted(wanted)
        came = iter(roll([ask for i in level for ask in wanted[i]]))
        for i in level:
            advance(i, [next(came) for _ in wanted[i]])
    return [results[i] for i in range(len(searches))]
