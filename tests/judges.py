"""Judges for tests of training on sampled answers, named in configs as `judges:Name`."""

from __future__ import annotations

import math
import random

from posttrain.common.config import Config
from posttrain.feedback.judge import Preference, Verdict


class Evens(Config):
    """The share of even tokens; parts: the length."""

    def open(self):
        return self

    def score(self, items):
        return [
            Verdict(
                sum(t % 2 == 0 for t in r.token_ids) / len(r.token_ids),
                parts={"length": float(len(r.token_ids))},
            )
            for _, r in items
        ]


class Silent(Evens):
    """Gives no answer to responses that begin with a token divisible by three."""

    def score(self, items):
        return [
            Verdict(None, "three") if r.token_ids[0] % 3 == 0 else v
            for v, (_, r) in zip(super().score(items), items, strict=True)
        ]


class Table(Config):
    """A fixed reward of the first token, `scale` times a sine of its id. With noise, scores are such that the
    better of two is a Bradley-Terry choice: a standard Gumbel variable is added.
    """

    scale: float = 1.0
    noise: bool = False

    def open(self):
        rng = random.Random(0)

        class Judge:
            def score(_, items):
                return [
                    Verdict(reward(r.token_ids[0], self.scale) + (gumbel(rng) if self.noise else 0.0))
                    for _, r in items
                ]

        return Judge()


def reward(token, scale):
    return scale * math.sin(1.7 * token)


def gumbel(rng):
    return -math.log(-math.log(rng.random()))


class Odds(Evens):
    """The share of odd tokens."""

    def score(self, items):
        return [Verdict(1 - v.score) for v in super().score(items)]


class Longer(Config):
    """Compares: the longer one is better."""

    def open(self):
        return self

    def compare(self, items):
        return [Preference(float(len(a.token_ids) > len(b.token_ids))) for _, a, b in items]


class Mute(Evens):
    """Gives no answer at all."""

    def score(self, items):
        return [Verdict(None, "mute") for _ in items]
