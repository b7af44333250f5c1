"""What the search asks for and gets, and what rollouts say of a trajectory's prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Phase = Literal["filter", "search", "confirm"]


@dataclass(frozen=True)
class Ask:
    """n rollouts of question number `question` that continue its prompt and these tokens of an answer."""

    question: int
    prefix: tuple[int, ...]
    n: int
    phase: Phase


@dataclass(frozen=True)
class Rollout:
    """One continuation of a prefix.

    tokens: after the prefix; none where the prefix is a whole answer. success: None where nobody can tell,
    `reason` says why. logps: of the tokens, where they were asked for (a prefix of no tokens).
    """

    tokens: tuple[int, ...]
    success: bool | None
    reason: str = ""
    whole: bool = True
    logps: tuple[float, ...] = ()


class Roller(Protocol):
    """Whoever makes rollouts: a model and a judge, or a world whose truth is known."""

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """`ask.n` rollouts for each, in order."""
        ...


@dataclass
class Place:
    """What is known after so many tokens of a trajectory.

    outcomes: of the rollouts that went through here, in order. unknown: how many more had none. own: how many
    of both began here. after: by the token that came next, outcomes again.
    """

    outcomes: list[bool] = field(default_factory=list)
    unknown: int = 0
    own: int = 0
    after: dict[int, list[bool]] = field(default_factory=dict)

    @property
    def drawn(self) -> int:
        return len(self.outcomes) + self.unknown

    @property
    def p(self) -> float | None:
        """Share of successes among the known outcomes."""
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else None


class Along:
    """What rollouts say of each prefix of one trajectory.

    A rollout from a prefix counts there, and also after each further token that it shares with the
    trajectory: given that it went this way, the rest of it is a draw from the model after the longer prefix,
    whatever led to its being asked for, since nothing after the longer prefix was seen when the tokens up to
    it were drawn. Whether it counts at a place is settled by the tokens up to that place, before its outcome.
    It never counts before its own beginning, and the trajectory itself counts nowhere: its outcome is a
    function of the tokens whose prefixes are being judged.
    Such counts serve to find pivots. A place is looked into because of them, so those that stand out do so by
    chance too: what is reported comes from fresh rollouts (`confirm`).
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self.places = [Place() for _ in range(len(self.tokens) + 1)]

    def add(self, prefix: Sequence[int], rollout: Rollout) -> None:
        """Take in a rollout of the same question that began after `prefix`."""
        path = (*prefix, *rollout.tokens)
        shared = next(
            (i for i, (a, b) in enumerate(zip(path, self.tokens, strict=False)) if a != b),
            min(len(path), len(self.tokens)),
        )
        for i in range(len(prefix), shared + 1):
            place = self.places[i]
            place.own += i == len(prefix)
            if rollout.success is None:
                place.unknown += 1
                continue
            place.outcomes.append(rollout.success)
            if i < len(path):
                place.after.setdefault(path[i], []).append(rollout.success)
