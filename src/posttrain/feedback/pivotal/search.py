"""The search in one question: is it neither easy nor hopeless, and on which tokens does success turn.

It makes no rollouts itself: it yields what it wants, and is sent what came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from posttrain.feedback.pivotal.betting import apart, differences, inside, tally
from posttrain.feedback.pivotal.candidates import Candidate, Trajectory, candidates_of
from posttrain.feedback.pivotal.rollouts import Along, Ask, Place, Rollout
from posttrain.feedback.pivotal.subdivide import Stretch, subdivide

# Shares such as 6/10 and 4/10 differ by 2/10, which floats do not.
_ROUNDING = 1e-9

Asking = Generator[list[Ask], list[list[Rollout]], "Found"]


@dataclass(frozen=True)
class Rules:
    """p_gap, low, high, trajectories, rollouts, max_rollouts, search_error: as in `PivotalConfig`."""

    p_gap: float
    low: float
    high: float
    trajectories: int
    rollouts: int
    max_rollouts: int
    search_error: float


@dataclass(frozen=True)
class Found:
    """What the search in one question gave. state: "kept", "easy" or "hard" (p outside the band), "unknown"
    (no rollout from the prompt could be judged), or "no answer" (none came to its end and was judged).

    undecided: stretches whose change was not clear within max_rollouts, and went by the estimate; blind:
    those at one of whose ends no rollout could be judged, which were not looked into.
    """

    state: str
    start: Place
    trajectories: list[Trajectory]
    candidates: list[Candidate]
    undecided: int = 0
    blind: int = 0


def search(question: int, rules: Rules) -> Asking:
    """Yields requests, is sent their rollouts, returns what was found."""
    rollouts: list[Rollout] = []
    start = Place()
    while (kept := _kept(start, rules)) is None:
        n = _more(start, _rounds(start, rules), rules)
        (came,) = yield [Ask(question, (), n, "filter")]
        rollouts += came
        start.outcomes += [r.success for r in came if r.success is not None]
        start.unknown = len(rollouts) - len(start.outcomes)
    if kept != "kept":
        return Found(kept, start, [], [])
    own = _first_distinct(rollouts, rules.trajectories)
    if not own:
        return Found("no answer", start, [], [])
    alongs = []
    for i in own:
        along = Along(rollouts[i].tokens)
        for j, other in enumerate(rollouts):
            if j != i:
                along.add((), other)
        alongs.append(along)
    counts = Counter(undecided=0, blind=0)
    probed: list[set[int]] = [set() for _ in own]
    logps = [rollouts[i].logps for i in own]
    pivots = yield from _level_by_level(question, alongs, logps, rules, counts, probed)
    trajectories = [
        Trajectory(along, rollouts[i].logps, bool(rollouts[i].success), places, sorted(ends))
        for i, along, places, ends in zip(own, alongs, pivots, probed, strict=True)
    ]
    return Found(kept, start, trajectories, candidates_of(question, trajectories), **counts)


def _first_distinct(rollouts: Sequence[Rollout], n: int) -> list[int]:
    """The first n answers that came to their end and could be judged, whatever the judge said of them."""
    usable = {r.tokens: i for i, r in reversed([*enumerate(rollouts)]) if r.whole and r.success is not None}
    return sorted(usable.values())[:n]


def _kept(start: Place, rules: Rules) -> str | None:
    """What the rollouts from the prompt say of a question; None for too few of them."""
    if start.drawn < rules.rollouts:
        return None
    clear = inside(tally(start.outcomes), rules.low, rules.high, rules.search_error)
    if clear is None and start.drawn < rules.max_rollouts:
        return None
    if start.p is None:
        return "unknown"
    if clear or (clear is None and rules.low <= start.p <= rules.high):
        return "kept"
    return "easy" if start.p > (rules.low + rules.high) / 2 else "hard"


def _rounds(place: Place, rules: Rules) -> int:
    """Whole rounds of rollouts at a place. The one that became the trajectory is missing where it began."""
    return (place.drawn + 1) // rules.rollouts


def _more(place: Place, least: int, rules: Rules) -> int:
    """Rollouts to ask for at `place`: twice as many rounds as the end that has least of them, up to as
    many as may be.
    """
    wanted = min(max(1, 2 * least), rules.max_rollouts // rules.rollouts)
    return max(wanted - _rounds(place, rules), 0) * rules.rollouts


def _level_by_level(
    question: int,
    alongs: Sequence[Along],
    logps: Sequence[Sequence[float]],
    rules: Rules,
    counts: Counter[str],
    probed: Sequence[set[int]],
) -> Generator[list[Ask], list[list[Rollout]], list[list[int]]]:
    """Subdivide all trajectories side by side; the places of their pivots. Those probed are noted."""
    pivots: list[list[int]] = [[] for _ in alongs]
    going = {t: subdivide(each) for t, each in enumerate(logps)}
    open_ = {t: next(each) for t, each in going.items()}
    while going:
        asks: dict[tuple[int, ...], int] = {}
        for t in list(going):
            probed[t].update(end for stretch in open_[t] for end in (stretch.start, stretch.stop))
            said = [_changes(alongs[t], stretch, rules, counts) for stretch in open_[t]]
            try:
                open_[t] = going[t].send(said)
            except StopIteration as e:
                pivots[t] = e.value
                del going[t]
            else:
                _want(asks, alongs[t], open_[t], rules)
        if not asks:
            continue
        wanted = [Ask(question, prefix, n, "search") for prefix, n in asks.items()]
        for ask, came in zip(wanted, (yield wanted), strict=True):
            for along in alongs:
                for rollout in came:
                    along.add(ask.prefix, rollout)
    return pivots


def _changes(along: Along, stretch: Stretch, rules: Rules, counts: Counter[str]) -> bool | None:
    """Whether p changes by p_gap or more across a stretch; None while more rollouts may tell.

    A rollout that went through both ends counts at both, so that the outcomes are not quite the independent
    draws of `differences`, and search_error is what the test aims at rather than a bound. What is reported
    does not rest on it.
    """
    before, after = along.places[stretch.start], along.places[stretch.stop]
    clear = apart(differences(after.outcomes, before.outcomes), rules.p_gap, rules.search_error)
    if clear is not None:
        return clear
    if min(_rounds(before, rules), _rounds(after, rules)) < rules.max_rollouts // rules.rollouts:
        return None
    if before.p is None or after.p is None:
        counts["blind"] += 1
        return False
    counts["undecided"] += 1
    return abs(after.p - before.p) >= rules.p_gap - _ROUNDING


def _want(asks: dict[tuple[int, ...], int], along: Along, open_: Sequence[Stretch], rules: Rules) -> None:
    """Note what the open stretches need. One that a split has just made may need nothing."""
    for stretch in open_:
        ends = (stretch.start, stretch.stop)
        least = min(_rounds(along.places[end], rules) for end in ends)
        for end in ends:
            n = _more(along.places[end], least, rules)
            if n:
                prefix = along.tokens[:end]
                asks[prefix] = max(n, asks.get(prefix, 0))
