"""A world in which p(success) after any tokens is known exactly: it walks up and down until an answer ends.

p is a level in tenths. Each token moves it by one tenth or not at all, and with probability `jumps` by three,
up and down alike, so that it is a martingale, and the level is p(success). 0 and 1 are never left. The last
token says whether the answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.feedback.pivotal.rollouts import Ask, Rollout

LENGTH = 40  # tokens of an answer before the last
TOP = 10  # levels above 0
NOISE = 3  # tokens that say the same
RIGHT, WRONG = 100, 101


def p_after(prefix: Sequence[int]) -> float:
    """p(success | prefix)."""
    if len(prefix) == LENGTH + 1:
        return float(prefix[-1] == RIGHT)
    return prefix[-1] // NOISE / TOP if prefix else 0.5


class World:
    """Rolls out answers; counts rollouts and the levels they came in."""

    def __init__(self, seed: int, jumps: float) -> None:
        self.rng, self.jumps = np.random.default_rng(seed), jumps
        self.rollouts = self.levels = 0

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        self.levels += 1
        self.rollouts += sum(ask.n for ask in asks)
        return [self._some(ask.prefix, ask.n) for ask in asks]

    def _some(self, prefix: tuple[int, ...], n: int) -> list[Rollout]:
        if len(prefix) == LENGTH + 1:
            return [Rollout((), prefix[-1] == RIGHT)] * n
        level = np.full(n, prefix[-1] // NOISE if prefix else TOP // 2)
        columns = []
        for _ in range(LENGTH - len(prefix)):
            size = np.where(self.rng.random(n) < self.jumps, 3, self.rng.random(n) < 0.5)
            size = np.minimum(size, np.minimum(level, TOP - level))
            level = level + size * self.rng.choice([-1, 1], n)
            columns.append(level * NOISE + self.rng.integers(NOISE, size=n))
        columns.append(np.where(self.rng.random(n) < level / TOP, RIGHT, WRONG))
        rows = np.stack(columns, 1).tolist()
        return [Rollout(tuple(row), row[-1] == RIGHT, logps=(-1.0,) * len(row)) for row in rows]
