"""Tokens that seem pivotal, and the token that stands against each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.feedback.pivotal.rollouts import Along, Place


@dataclass(frozen=True)
class Candidate:
    """A token that seems pivotal. prefix: the answer's tokens before it. rises: whether p rises at it.

    other: the token, among those that rollouts from the prefix began with, that seems to move p most the
    other way; None where none does.
    """

    question: int
    prefix: tuple[int, ...]
    token: int
    rises: bool
    other: int | None


@dataclass
class Trajectory:
    """A sampled answer, what rollouts said along it, and the places of the tokens that seem pivotal.

    probed: the places whose p was wanted.
    """

    along: Along
    logps: tuple[float, ...]
    success: bool
    pivots: list[int]
    probed: list[int]


def candidates_of(question: int, trajectories: Sequence[Trajectory]) -> list[Candidate]:
    """The pivots, each once, with the token that stands against each."""
    found: dict[tuple[tuple[int, ...], int], Candidate] = {}
    for trajectory in trajectories:
        tokens, places = trajectory.along.tokens, trajectory.along.places
        for i in trajectory.pivots:
            before, after = places[i].p, places[i + 1].p
            if before is None or after is None or before == after:
                continue
            rises = after > before
            other = _other(places[i], tokens[i], rises)
            found.setdefault(
                (tokens[:i], tokens[i]), Candidate(question, tokens[:i], tokens[i], rises, other)
            )
    return list(found.values())


def _other(place: Place, token: int, rises: bool) -> int | None:
    """Of the tokens that rollouts began with here, the one that moves p most the other way, by the mean of
    its outcomes with one of each kind added, which holds back tokens seen but once or twice.
    """
    assert place.p is not None
    sign = -1 if rises else 1
    best: tuple[float, int] | None = None
    for next_, outcomes in place.after.items():
        if next_ == token:
            continue
        moved = sign * ((sum(outcomes) + 1) / (len(outcomes) + 2) - place.p)
        if moved > 0 and (best is None or moved > best[0]):
            best = (moved, next_)
    return None if best is None else best[1]
