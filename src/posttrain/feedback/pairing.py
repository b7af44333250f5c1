"""From several responses to one prompt to pairs of a better and a worse one, and what gave none."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from posttrain.feedback.judge import Preference, Verdict
from posttrain.records import Prompt, Response

Pairs = Literal["best_worst", "all", "random"]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A response that may stand in a pair. row: id of the row it comes from. maker: who wrote it."""

    response: Response
    row: str
    maker: str = ""


@dataclass(frozen=True)
class Group:
    """Responses to one prompt."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Pair:
    """strength: difference of scores. probability: of chosen being better, where the judge gave one."""

    chosen: Candidate
    rejected: Candidate
    strength: float | None = None
    probability: float | None = None


def judgeable(group: Group, counts: Counter[str]) -> list[Candidate]:
    """Whom a judge is asked about: not those cut off, whose end nobody knows, and each text once."""
    whole = [c for c in group.candidates if c.response.finish != "length"]
    distinct: dict[str, Candidate] = {}
    for candidate in whole:
        distinct.setdefault(candidate.response.text, candidate)
    counts["cut_off"] += len(group.candidates) - len(whole)
    counts["identical"] += len(whole) - len(distinct)
    return list(distinct.values())


def by_score(
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    pairs: Pairs,
    min_gap: float,
    rng: random.Random,
    counts: Counter[str],
) -> list[Pair]:
    """Pairs by the judge's scores; counts no_answer, and ties and too_close pairs, which become none.

    best_worst: the highest against the lowest. all: each against each. random: two at random.
    """
    scored = [(v.score, c) for v, c in zip(verdicts, candidates, strict=True) if v.score is not None]
    counts["no_answer"] += len(candidates) - len(scored)
    if len(scored) < 2:
        return []
    if pairs == "best_worst":
        best, worst = max(scored, key=lambda s: s[0]), min(scored, key=lambda s: s[0])
        proposed = [(best, worst)]
    else:
        proposed = _proposed(scored, pairs, rng)
    found = []
    for (a, first), (b, second) in proposed:
        chosen, rejected = (first, second) if a > b else (second, first)
        if _far_apart(abs(a - b), min_gap, counts):
            found.append(Pair(chosen, rejected, strength=abs(a - b)))
    return found


def to_compare(
    candidates: Sequence[Candidate], pairs: Pairs, rng: random.Random
) -> list[tuple[Candidate, Candidate]]:
    """Pairs for a judge that compares; which stands first is left to chance, lest its place favour it."""
    if len(candidates) < 2:
        return []
    return [(b, a) if rng.random() < 0.5 else (a, b) for a, b in _proposed(candidates, pairs, rng)]


def by_preference(
    first: Candidate, second: Candidate, preference: Preference, min_gap: float, counts: Counter[str]
) -> Pair | None:
    """A pair by the judge's probability, unless there is none (no_answer), or it is a tie or too close.

    A probability of 1 or 0 only names the winner, so the pair carries none.
    """
    p = preference.probability
    if p is None:
        counts["no_answer"] += 1
        return None
    if not _far_apart(abs(2 * p - 1), min_gap, counts):
        return None
    chosen, rejected, sure = (first, second, p) if p > 0.5 else (second, first, 1 - p)
    return Pair(chosen, rejected, probability=sure if sure < 1 else None)


def _proposed(items: Sequence[T], pairs: Pairs, rng: random.Random) -> list[tuple[T, T]]:
    if pairs == "random":
        a, b = sorted(rng.sample(range(len(items)), 2))
        return [(items[a], items[b])]
    return list(itertools.combinations(items, 2))


def _far_apart(gap: float, min_gap: float, counts: Counter[str]) -> bool:
    if gap == 0:
        counts["ties"] += 1
    elif gap < min_gap:
        counts["too_close"] += 1
    return gap > 0 and gap >= min_gap
