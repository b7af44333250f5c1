"""Every pivot that is reported is confirmed on fresh rollouts, which had no say in its being chosen."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from posttrain.feedback.pivotal.betting import (
    against_at_least,
    against_at_most,
    differences,
    rejected,
)
from posttrain.feedback.pivotal.candidates import Candidate
from posttrain.feedback.pivotal.rollouts import Ask, Rollout

# Chance to give a true pivot up early.
_GIVE_UP = 0.05

State = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Claims:
    """p_gap, other_gap, rollouts, confirm_rollouts, error: as in `PivotalConfig`."""

    p_gap: float
    other_gap: float
    rollouts: int
    confirm_rollouts: int
    error: float


@dataclass
class Arm:
    """Fresh rollouts from one prefix of one candidate."""

    outcomes: list[bool] = field(default_factory=list)
    unknown: int = 0

    @property
    def drawn(self) -> int:
        return len(self.outcomes) + self.unknown

    def add(self, rollouts: Sequence[Rollout]) -> None:
        self.outcomes += [r.success for r in rollouts if r.success is not None]
        self.unknown += sum(r.success is None for r in rollouts)


@dataclass
class Trial:
    """A candidate under test. Each of its arms has rollouts of its own, so that its tests are of independent
    draws, and all grow together.

    sure: the evidence for a pivot can need no more, so its rollouts need not go on. state: of the claim that
    p changes by more than p_gap at the token. pair: of the claim that, besides, the
    other token moves p by more than other_gap the other way; None where there is no other token.
    """

    candidate: Candidate
    before: Arm = field(default_factory=Arm)
    token: Arm = field(default_factory=Arm)
    other: Arm = field(default_factory=Arm)
    sure: bool = False
    state: State = "undecided"
    pair: State | None = None

    def __post_init__(self) -> None:
        self.pair = None if self.candidate.other is None else "undecided"

    def evidence(self, claims: Claims) -> tuple[float, float]:
        """Log-wealth against there being no pivot, and no pair. That against no pair is the lesser of the two
        it rests on: whichever claim is false, its own bounds it.
        """
        rise = differences(self.token.outcomes, self.before.outcomes)
        fall = differences(self.before.outcomes, self.other.outcomes)
        if self.candidate.rises:
            pivot = against_at_most(rise, claims.p_gap, -1)
            other = against_at_most(fall, claims.other_gap, -1)
        else:
            pivot = against_at_least(rise, -claims.p_gap, 1)
            other = against_at_least(fall, -claims.other_gap, 1)
        return pivot, min(pivot, other)

    def futile(self, claims: Claims) -> tuple[bool, bool]:
        """Whether it is clear that p changes by less than p_gap at the token, or in the other direction; and
        that the other token moves p by less than other_gap.
        """
        enough = -math.log(_GIVE_UP)
        rise = differences(self.token.outcomes, self.before.outcomes)
        fall = differences(self.before.outcomes, self.other.outcomes)
        if self.candidate.rises:
            return (
                against_at_least(rise, claims.p_gap, 1) >= enough,
                against_at_least(fall, claims.other_gap, 1) >= enough,
            )
        return (
            against_at_most(rise, -claims.p_gap, -1) >= enough,
            against_at_most(fall, -claims.other_gap, -1) >= enough,
        )


def confirm(
    candidates: Sequence[Candidate], claims: Claims
) -> Generator[list[Ask], list[list[Rollout]], list[Trial]]:
    """Yields requests for fresh rollouts, is sent them, returns what became of each candidate.

    Among the pivots confirmed, and among the pairs confirmed, the expected share of false ones is at most
    `error` (e-BH over all candidates of all questions). A candidate stops once it is confirmed with its pair,
    once it is clearly none, or at confirm_rollouts an arm.
    """
    trials = [Trial(candidate) for candidate in candidates]
    going = list(trials)
    n = claims.rollouts
    while going:
        asks = [(trial, arm, prefix) for trial in going for arm, prefix in _arms(trial)]
        replies = yield [Ask(trial.candidate.question, prefix, n, "confirm") for trial, _, prefix in asks]
        for (_, arm, _), came in zip(asks, replies, strict=True):
            arm.add(came)
        _judge(trials, claims)
        drawn = going[0].before.drawn
        n = min(drawn, claims.confirm_rollouts - drawn)
        going = [trial for trial in going if n > 0 and _unsettled(trial)]
    return trials


def _arms(trial: Trial) -> list[tuple[Arm, tuple[int, ...]]]:
    """The arms that still grow, with the prefixes they continue."""
    candidate = trial.candidate
    arms = [(trial.before, candidate.prefix)]
    if not trial.sure:
        arms.append((trial.token, (*candidate.prefix, candidate.token)))
    if trial.pair == "undecided" and candidate.other is not None:
        arms.append((trial.other, (*candidate.prefix, candidate.other)))
    return arms


def _unsettled(trial: Trial) -> bool:
    return trial.state == "undecided" or (trial.state == "confirmed" and trial.pair == "undecided")


def _judge(trials: Sequence[Trial], claims: Claims) -> None:
    """What is confirmed stays so, also where its wealth falls again. The bound holds all the same: each of
    the k confirmed in the end had, when it was, a wealth of at least n / (k' error), where k' <= k of the n
    were confirmed then; and at that moment, a stopping time, a false one's expected wealth is at most 1.
    """
    paired = [trial for trial in trials if trial.candidate.other is not None]
    evidence = {id(trial): trial.evidence(claims) for trial in trials}
    for trial, found in zip(
        trials, rejected([evidence[id(t)][0] for t in trials], claims.error), strict=True
    ):
        if found:
            trial.state = "confirmed"
    for trial, found in zip(
        paired, rejected([evidence[id(t)][1] for t in paired], claims.error), strict=True
    ):
        if found:
            trial.pair = "confirmed"
    for trial in trials:
        trial.sure = evidence[id(trial)][0] >= math.log(len(trials) / claims.error)
        no_pivot, no_other = trial.futile(claims)
        if trial.state == "undecided" and no_pivot:
            trial.state = "refuted"
        if trial.pair == "undecided" and (no_other or trial.state == "refuted"):
            trial.pair = "refuted"
