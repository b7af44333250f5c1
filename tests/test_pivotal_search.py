"""The search: Subdivide by hand, its parts, and what it finds in a world whose p(success) is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from pivotal_world import World, p_after

from posttrain.feedback.pivotal.candidates import Candidate, Trajectory, candidates_of
from posttrain.feedback.pivotal.confirm import Claims, Trial, confirm
from posttrain.feedback.pivotal.drive import drive
from posttrain.feedback.pivotal.outcome import along
from posttrain.feedback.pivotal.rollouts import Along, Ask, Rollout
from posttrain.feedback.pivotal.search import Found, Rules, search
from posttrain.feedback.pivotal.subdivide import Stretch, split, subdivide

RULES = Rules(0.2, 0.2, 0.8, trajectories=1, rollouts=16, max_rollouts=64, search_error=0.2)
PUBLISHED = Rules(0.2, 0.2, 0.8, trajectories=1, rollouts=10, max_rollouts=10, search_error=1e-9)
CLAIMS = Claims(0.2, 0.0, rollouts=16, confirm_rollouts=512, error=0.05)


def by_exact(p: list[float], logps: list[float], gap: float = 0.2) -> tuple[list[int], list[Stretch]]:
    """Subdivide with p known: the pivots, and all stretches looked at."""
    going = subdivide(logps)
    open_, seen = next(going), []
    while True:
        seen += open_
        try:
            open_ = going.send([abs(p[s.stop] - p[s.start]) >= gap - 1e-12 for s in open_])
        except StopIteration as e:
            return e.value, seen


def test_split_at_the_cumulative_midpoint():
    assert split(Stretch(0, 4), [-1, -1, -1, -1]) == (Stretch(0, 2), Stretch(2, 4))
    assert split(Stretch(0, 4), [-6, -1, -1, -1]) == (Stretch(0, 1), Stretch(1, 4))
    assert split(Stretch(0, 4), [-1, -1, -1, -9]) == (Stretch(0, 3), Stretch(3, 4))
    assert split(Stretch(1, 4), [-50, -1, -2, -1]) == (Stretch(1, 2), Stretch(2, 4))  # 1 + 3, or 3 + 1
    assert split(Stretch(0, 5), [0, 0, 0, 0, 0]) == (Stretch(0, 2), Stretch(2, 5))
    assert split(Stretch(3, 5), [0, 0, 0, 0, -1]) == (Stretch(3, 4), Stretch(4, 5))
    with pytest.raises(ValueError, match="single"):
        split(Stretch(2, 3), [-1, -1, -1])


def test_subdivide_by_hand():
    # p rises at token 2 by 0.4 and falls at token 5 by 0.3; the rest drifts
    p = [0.5, 0.5, 0.55, 0.95, 0.95, 0.9, 0.6, 0.6, 0.55]
    logps = [-1.0] * 8
    # whole: 0.5 -> 0.55, less than the gap: the report's algorithm looks no further
    assert by_exact(p, logps) == ([], [Stretch(0, 8)])
    # without the fall it finds the rise: 0..8, then 0..4 and 4..8, then 0..2 and 2..4, then 2..3 and 3..4
    p[6:] = [0.9, 0.9, 0.9]
    pivots, seen = by_exact(p, logps)
    assert pivots == [2]
    assert seen == [Stretch(*ends) for ends in [(0, 8), (0, 4), (4, 8), (0, 2), (2, 4), (2, 3), (3, 4)]]
    # a pivot is a single token with the gap, and a slow rise has none
    assert by_exact([0.1 * i for i in range(9)], logps)[0] == []
    assert by_exact([0.2, 0.5, 0.8], [-1, -1])[0] == [0, 1]
    assert by_exact([0.3, 1.0], [-1]) == ([0], [Stretch(0, 1)])


def test_what_is_not_known_yet_stays_open_beside_what_goes_on():
    going = subdivide([-1.0, -1.0, -1.0, -1.0])
    assert next(going) == [Stretch(0, 4)]
    assert going.send([None]) == [Stretch(0, 4)]
    assert going.send([True]) == [Stretch(0, 2), Stretch(2, 4)]
    assert going.send([None, True]) == [Stretch(0, 2), Stretch(2, 3), Stretch(3, 4)]
    assert going.send([None, False, True]) == [Stretch(0, 2)]
    with pytest.raises(StopIteration) as end:
        going.send([False])
    assert end.value.value == [3]


def test_a_rollout_counts_where_it_went_the_same_way_and_nowhere_before_its_beginning():
    along = Along([1, 2, 3, 9])
    along.add((), Rollout((1, 2, 5, 9), True))
    along.add((1,), Rollout((2, 3, 7, 9), False))
    along.add((1, 2), Rollout((4,), None, "cut off", whole=False))
    along.add((2,), Rollout((2, 3), True))  # from another answer's prefix
    along.add((1, 2, 3, 9), Rollout((), True))  # the whole answer
    assert [place.outcomes for place in along.places] == [
        [True],
        [True, False],
        [True, False],
        [False],
        [True],
    ]
    assert [place.unknown for place in along.places] == [0, 0, 1, 0, 0]
    assert along.places[2].after == {5: [True], 3: [False]}
    assert along.places[0].p == 1
    assert along.places[4].after == {}


def test_borrowed_outcomes_have_the_right_mean():
    # rollouts from the prompt, counted after the longer prefixes that some went through: each has its own p
    world = World(0, 0.05)
    tokens = (18, 21)
    along = Along(tokens)
    for rollout in world([Ask(0, (), 20000, "filter")])[0]:
        along.add((), rollout)
    for i in (1, 2):
        place = along.places[i]
        assert len(place.outcomes) > 100
        assert place.p == pytest.approx(p_after(tokens[:i]), abs=4 * (0.25 / len(place.outcomes)) ** 0.5)


def found_by(rules: Rules, questions: int, jumps: float) -> tuple[list[Found], World]:
    world = World(0, jumps)
    return drive([search(i, rules) for i in range(questions)], world), world


def change(candidate: Candidate, token: int | None = None) -> float:
    return p_after((*candidate.prefix, candidate.token if token is None else token)) - p_after(
        candidate.prefix
    )


def truth(found: list[Found]) -> set[tuple[tuple[int, ...], int]]:
    """The pivots that the report's algorithm finds where p is exact."""
    pivots = set()
    for each in found:
        for trajectory in each.trajectories:
            tokens = trajectory.along.tokens
            p = [p_after(tokens[:i]) for i in range(len(tokens) + 1)]
            pivots |= {(tokens[:i], tokens[i]) for i in by_exact(p, list(trajectory.logps))[0]}
    return pivots


def test_all_questions_advance_together():
    found, world = found_by(RULES, 40, 0.05)
    assert sum(each.state == "kept" for each in found) >= 39
    # no more levels than the deepest search needs: the filter's, and three for each halving of 41 tokens
    assert world.levels <= 3 + 3 * 7


def test_selecting_on_few_rollouts_finds_mostly_what_is_not_there():
    # as published, ten rollouts a prefix, where one token in two hundred is pivotal
    found, world = found_by(PUBLISHED, 60, 0.005)
    candidates = [c for each in found for c in each.candidates]
    real = [c for c in candidates if abs(change(c)) >= 0.2]
    assert len(candidates) > 60
    assert len(real) / len(candidates) < 0.2
    (trials,) = drive([confirm(candidates, CLAIMS)], world)
    confirmed = [t.candidate for t in trials if t.state == "confirmed"]
    assert confirmed
    assert all(abs(change(c)) >= 0.2 for c in confirmed)
    assert len(confirmed) >= 0.7 * len(real)


def test_precision_and_recall_of_the_search():
    found, world = found_by(RULES, 60, 0.05)
    candidates = [c for each in found for c in each.candidates]
    (trials,) = drive([confirm(candidates, CLAIMS)], world)
    confirmed = {(t.candidate.prefix, t.candidate.token) for t in trials if t.state == "confirmed"}
    wanted = truth(found)
    false = [t for t in trials if t.state == "confirmed" and abs(change(t.candidate)) <= 0.2]
    assert len(wanted) > 30
    # a change of 0.3 against a gap of 0.2 is often not clear within 512 rollouts
    assert len(confirmed & wanted) / len(wanted) > 0.45
    assert len(false) <= 0.05 * len(confirmed)
    for trial in trials:
        c = trial.candidate
        if trial.state == "confirmed":
            assert c.rises == (change(c) > 0)
        if trial.pair == "confirmed":
            assert c.other is not None
            assert change(c, c.other) * change(c) < 0


def test_nothing_is_confirmed_where_nothing_is():
    # candidates that change p by a tenth, or not at all, the other token likewise
    world = World(3, 0.0)
    none = [Candidate(i, (15,) * k, 16 + 2 * (i % 2), True, 17) for i, k in enumerate([30, 38] * 25)]
    assert {round(change(c), 6) for c in none} == {0.0, 0.1}
    (trials,) = drive([confirm(none, CLAIMS)], world)
    assert [t.state for t in trials].count("confirmed") == 0
    assert [t.state for t in trials].count("refuted") >= 40
    assert all(t.pair != "confirmed" for t in trials)


def test_a_confirmation_by_hand():
    # p alternates before the token, is 1 after it and 0 after the other one. After 16 rollouts the best stake
    # has (1 + 0.975 * 0.8 / 1.2)^8 (1 - 0.975 * 0.2 / 1.2)^8 = 13 against "no more than 0.2": too little for
    # 1 / 0.05. After 32 it has the square. Against "the other does not lower p" it has 1.975^8 = 231 at once.
    asked = []
    told = {(7,): lambda i: i % 2 == 0, (7, 1): lambda i: True, (7, 2): lambda i: False}

    def roll(asks):
        asked.append([(ask.prefix, ask.n) for ask in asks])
        return [[Rollout((9,), told[ask.prefix](i)) for i in range(ask.n)] for ask in asks]

    (trials,) = drive([confirm([Candidate(0, (7,), 1, True, 2)], CLAIMS)], roll)
    assert asked == [[((7,), 16), ((7, 1), 16), ((7, 2), 16)]] * 2
    assert (trials[0].state, trials[0].pair) == ("confirmed", "confirmed")
    # where the pivot is clear and its pair is not, the token itself is rolled out no more
    asked.clear()
    told[7, 2] = lambda i: i % 2 == 0
    (trials,) = drive([confirm([Candidate(0, (7,), 1, True, 2)], CLAIMS)], roll)
    assert [len(level) for level in asked[:3]] == [3, 3, 2]
    assert asked[2] == [((7,), 32), ((7, 2), 32)]
    assert (trials[0].state, trials[0].token.drawn) == ("confirmed", 32)
    told[7, 2] = lambda i: False
    # a token that changes nothing: against "0.2 or more" the best stake has (1 + 0.975 * 0.2 / 0.8)^16 = 33
    # and all together 10, less than the 20 at which it is given up; after 32 there is enough
    asked.clear()
    told = {(7,): lambda i: i % 2 == 0, (7, 1): lambda i: i % 2 == 0, (7, 2): lambda i: False}
    (trials,) = drive([confirm([Candidate(0, (7,), 1, True, 2)], CLAIMS)], roll)
    assert [[n for _, n in level] for level in asked] == [[16, 16, 16]] * 2
    assert (trials[0].state, trials[0].pair) == ("refuted", "refuted")
    # the first candidate said to fall is refuted, and its pair with it
    asked.clear()
    told[7, 1] = lambda i: True
    (trials,) = drive([confirm([Candidate(0, (7,), 1, False, 2)], CLAIMS)], roll)
    assert (trials[0].state, trials[0].pair) == ("refuted", "refuted")
    assert len(asked) == 1


def test_the_answer_that_is_searched_counts_nowhere_itself():
    found, _ = found_by(PUBLISHED, 20, 0.05)
    kept = [each for each in found if each.trajectories]
    assert len(kept) > 10
    for each in kept:
        assert each.start.drawn == 10
        assert each.trajectories[0].along.places[0].drawn == 9


def searched(after: Callable[[int], bool | None]) -> Found:
    """A question whose answers are of one token, each another one, right in every other case; `after` is what
    comes of the i-th rollout after the one that is searched.
    """
    tokens = itertools.count(100)

    def roll(asks):
        return [
            [
                Rollout((), after(i)) if ask.prefix else Rollout((next(tokens),), i % 2 == 0, logps=(-1.0,))
                for i in range(ask.n)
            ]
            for ask in asks
        ]

    (found,) = drive([search(0, RULES)], roll)
    assert found.state == "kept"
    return found


def test_a_stretch_at_whose_end_nothing_can_be_judged_is_blind():
    found = searched(lambda i: None)
    assert (found.blind, found.undecided, found.trajectories[0].pivots) == (1, 0, [])


def test_what_is_not_clear_in_time_goes_by_the_estimate_and_is_counted():
    found = searched(lambda i: i % 4 != 0)  # a change of a quarter, which 64 rollouts do not make clear
    assert (found.blind, found.undecided, found.trajectories[0].pivots) == (0, 1, [0])
    assert [place.drawn for place in found.trajectories[0].along.places] == [63, 64]
    found = searched(lambda i: True)
    assert (found.undecided, found.trajectories[0].pivots) == (0, [0])


def after_seven(outcomes: dict[int, str]) -> Trajectory:
    """The answer 7 1 9, whose second token seems pivotal; outcomes after 7, by the token that came next."""
    along = Along((7, 1, 9))
    for token, said in outcomes.items():
        for one in said:
            along.add((7,), Rollout((token, 9), one == "+"))
    return Trajectory(along, (-1.0,) * 3, True, [1], [1, 2])


def test_the_token_against_a_candidate_by_hand():
    # p after 7 is 9/16, and 1 after the candidate. Token 2 failed once: (0 + 1) / (1 + 2); token 3 in six of
    # seven: (1 + 1) / (7 + 2), which is less
    (found,) = candidates_of(4, [after_seven({1: "++++++++", 2: "-", 3: "------+"})])
    assert found == Candidate(4, (7,), 1, True, 3)
    # where p falls at the token, the other one has to raise it
    (found,) = candidates_of(0, [after_seven({1: "--------", 2: "+", 3: "++++++-"})])
    assert (found.rises, found.other) == (False, 3)
    # p after 7 is 1/6, and token 2, which failed three times, counts as (0 + 1) / (3 + 2), which is more
    (found,) = candidates_of(0, [after_seven({1: "+--", 2: "---"})])
    assert (found.rises, found.other) == (True, None)
    # nothing changes, or nobody knows
    assert candidates_of(0, [after_seven({1: "+-", 2: "+-"})]) == []
    assert candidates_of(0, [after_seven({2: "+-"})]) == []
    # the same token of two answers is one candidate
    assert len(candidates_of(0, [after_seven({1: "++", 2: "-"})] * 2)) == 1


def test_a_candidate_belongs_to_every_answer_that_goes_its_way():
    first, second = (
        Trajectory(Along(tokens), (-1.0,) * len(tokens), True, [], []) for tokens in [(1, 2, 9), (1, 2, 8, 9)]
    )
    trials = [Trial(Candidate(0, *about, True, None)) for about in [((1, 2, 8), 9), ((1,), 2), ((), 3)]]
    assert along(first, trials) == [trials[1]]
    assert along(second, trials) == [trials[1], trials[0]]


@pytest.mark.parametrize("rises", [True, False])
@pytest.mark.parametrize(("other_gap", "pair"), [(0.0, "confirmed"), (0.1, "confirmed"), (0.4, "refuted")])
def test_the_other_token_moves_p_the_other_way_by_what_is_asked(rises, other_gap, pair):
    # p is 1/2 before, 1 or 0 after the token, and moves by a quarter the other way after the other one
    told = {(): lambda i: i % 2 == 0, (1,): lambda i: rises, (2,): lambda i: (i % 4 == 0) == rises}

    def roll(asks):
        return [[Rollout((9,), told[ask.prefix](i)) for i in range(ask.n)] for ask in asks]

    claims = replace(CLAIMS, other_gap=other_gap)
    (trials,) = drive([confirm([Candidate(0, (), 1, rises, 2)], claims)], roll)
    assert (trials[0].state, trials[0].pair) == ("confirmed", pair)
    assert trials[0].before.drawn == trials[0].other.drawn <= claims.confirm_rollouts


class Fixed:
    """Rollouts of one token, which come from a list over and over."""

    def __init__(self, *rollouts: Rollout) -> None:
        self.rollouts, self.asked = rollouts, 0

    def __call__(self, asks: list[Ask]) -> list[list[Rollout]]:
        self.asked += sum(ask.n for ask in asks)
        return [[self.rollouts[i % len(self.rollouts)] for i in range(ask.n)] for ask in asks]


def test_questions_outside_the_band_are_left_early():
    easy, hard = Fixed(Rollout((5,), True)), Fixed(Rollout((5,), False))
    (found,) = drive([search(0, RULES)], easy)
    assert found.state == "easy"
    assert easy.asked == 16
    (found,) = drive([search(0, RULES)], hard)
    assert found.state == "hard"
    assert hard.asked == 16


def test_rollouts_that_nobody_can_judge_are_no_failures():
    mute = Fixed(Rollout((5,), None, "no answer found"))
    (found,) = drive([search(0, RULES)], mute)
    assert found.state == "unknown"
    assert found.start.p is None
    assert found.start.unknown == 64
    # every other one is cut off: p is that of the others, which is easy
    mixed = Fixed(Rollout((5,), True), Rollout((6,), None, "cut off", whole=False))
    (found,) = drive([search(0, RULES)], mixed)
    assert found.state == "easy"
    assert found.start.p == 1
    assert found.start.unknown > 0
