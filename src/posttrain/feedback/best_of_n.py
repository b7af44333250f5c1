"""Best of n: the best of several responses to a prompt, and what a judge's pick is worth for every n."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from posttrain.feedback.judge import Verdict


def best_index(verdicts: Sequence[Verdict], rng: random.Random) -> int | None:
    """The place of the highest score, drawn among equals; None where no verdict has a score."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if not scores:
        return None
    top = max(scores)
    return rng.choice([i for i, verdict in enumerate(verdicts) if verdict.score == top])


def expected_best(picks: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the sample with the highest pick among n of the N given, drawn without
    replacement: for n <= N independent samples, an unbiased estimate of best-of-n.

    With the samples sorted by pick, the one of rank i (from 1, the lowest) is the best of C(i-1, n-1) of the
    C(N, n) sets (Nakano et al. 2021, arXiv:2112.09332, appendix I; used by Gao et al. 2022,
    arXiv:2210.10760). Samples of equal pick share the sets in which one of them is best: that is the average
    over every way to break the tie.

    picks, values: [N], what is picked by and what it is worth. Raises ValueError unless 1 <= n <= N.
    """
    if not 1 <= n <= len(picks):
        raise ValueError(f"the best of {n} needs {n} samples, and there are {len(picks)}")
    ranked = sorted(zip(picks, values, strict=True), key=lambda pair: pair[0])
    every = math.comb(len(ranked), n)
    expected, below = 0.0, 0
    while below < len(ranked):
        upto = below
        while upto < len(ranked) and ranked[upto][0] == ranked[below][0]:
            upto += 1
        share = (math.comb(upto, n) - math.comb(below, n)) / every
        expected += share * math.fsum(value for _, value in ranked[below:upto]) / (upto - below)
        below = upto
    return expected


def won(picks: Sequence[float], values: Sequence[float], n: int) -> float:
    """The probability that the best of n by pick is worth more than one more sample, a tie counting one half:
    the mean over the N samples of the best of n of the others against it, which has no bias.

    picks, values: [N]. Raises ValueError unless 1 <= n < N.
    """
    found = []
    for i, other in enumerate(values):
        beaten = [0.5 if value == other else float(value > other) for value in values]
        found.append(expected_best([*picks[:i], *picks[i + 1 :]], [*beaten[:i], *beaten[i + 1 :]], n))
    return math.fsum(found) / len(found)


def kl_bound(n: int) -> float:
    """log n - (n-1)/n, in nats: how far best-of-n is from the policy it samples from, at most.

    The closed form (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; derived by Hilton) is exact where
    the n samples surely differ and none tie; in general it is an upper bound (Beirami et al. 2024,
    arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n
