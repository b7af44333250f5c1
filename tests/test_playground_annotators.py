"""Simulated annotators err as often, and in the way, that their config says."""

import math

import pytest

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.feedback.judge import Judge, PairJudge
from posttrain.playground.annotators import Annotators
from posttrain.playground.oracle import verdict
from posttrain.playground.sources import Demonstrations
from posttrain.records import Response

ROWS = [row.prompt for row in Demonstrations(n=2000, areas={"arithmetic": 1}).rows()]


def right_answer(prompt):
    return Response(text=f"{prompt.reference}.")


def wrong_answer(prompt):
    return Response(text=f"{int(prompt.reference) + 1}.")


def first_wins(cfg, pairs):
    return [preference.probability for preference in cfg.open().compare(pairs)]


GOOD_FIRST = [(p, right_answer(p), wrong_answer(p)) for p in ROWS]
BAD_FIRST = [(p, bad, good) for p, good, bad in GOOD_FIRST]
SAME = [(p, good, good) for p, good, _ in GOOD_FIRST]
N = len(ROWS)
THREE_SIGMA = 3 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize("accuracy", [0.6, 0.9])
def test_accuracy(accuracy):
    cfg = Annotators(accuracy=accuracy)
    assert sum(first_wins(cfg, GOOD_FIRST)) / N == pytest.approx(accuracy, abs=THREE_SIGMA)
    assert sum(first_wins(cfg, BAD_FIRST)) / N == pytest.approx(1 - accuracy, abs=THREE_SIGMA)
    assert sum(first_wins(cfg, SAME)) / N == pytest.approx(0.5, abs=THREE_SIGMA)


def test_perfect_annotators_agree_with_the_oracle():
    assert set(first_wins(Annotators(accuracy=1.0, annotators=3), GOOD_FIRST)) == {1.0}


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_bradley_terry(temperature):
    """The gap is 0.5 by the score's definition: a bare right number scores 0.5, a bare wrong one 0."""
    expected = 1 / (1 + math.exp(-0.5 / temperature))
    cfg = Annotators(temperature=temperature)
    assert sum(first_wins(cfg, GOOD_FIRST)) / N == pytest.approx(expected, abs=THREE_SIGMA)


def test_scores_are_bradley_terrys_random_utilities():
    cfg = Annotators(temperature=0.5)
    judge = cfg.open()
    assert isinstance(judge, Judge)
    assert isinstance(judge, PairJudge)
    good = [v.score for v in judge.score([(p, right_answer(p)) for p in ROWS])]
    bad = [v.score for v in judge.score([(p, wrong_answer(p)) for p in ROWS])]
    won = sum(g > b for g, b in zip(good, bad, strict=True)) / N
    assert won == pytest.approx(1 / (1 + math.exp(-1)), abs=THREE_SIGMA)


def test_scores_under_accuracy_are_the_oracles_or_their_mirror_image():
    scores = [v.score for v in Annotators(accuracy=0.8).open().score([(p, wrong_answer(p)) for p in ROWS])]
    assert set(scores) == {0.0, 1.0}
    assert scores.count(0.0) / N == pytest.approx(0.8, abs=THREE_SIGMA)


def test_position_bias():
    cfg = Annotators(accuracy=0.75, position_bias=1.0)
    expected = 1 / (1 + math.exp(-(math.log(3) + 1)))
    assert sum(first_wins(cfg, GOOD_FIRST)) / N == pytest.approx(expected, abs=THREE_SIGMA)
    assert sum(first_wins(cfg, SAME)) / N == pytest.approx(1 / (1 + math.exp(-1)), abs=THREE_SIGMA)


def test_silence_is_no_answer_and_not_a_tie():
    found = first_wins(Annotators(accuracy=0.9, no_answer=0.3), GOOD_FIRST)
    assert found.count(None) / N == pytest.approx(0.3, abs=THREE_SIGMA)
    heard = [p for p in found if p is not None]
    assert sum(heard) / len(heard) == pytest.approx(0.9, abs=THREE_SIGMA)
    scores = [
        v.score
        for v in Annotators(accuracy=0.9, no_answer=1.0).open().score([(ROWS[0], right_answer(ROWS[0]))])
    ]
    assert scores == [None]


def test_several_annotators_give_the_share_of_those_who_answered():
    found = first_wins(Annotators(accuracy=0.7, annotators=5), GOOD_FIRST)
    assert {round(p * 5) for p in found} == {0, 1, 2, 3, 4, 5}
    assert sum(p > 0.5 for p in found) / N > 0.8  # a majority of five at 0.7 is right in 0.837
    some = first_wins(Annotators(accuracy=0.7, annotators=5, no_answer=0.5), GOOD_FIRST)
    assert {1 / 3, 1 / 2, 1 / 4} <= set(some)


def test_a_judgement_depends_on_seed_and_item_alone():
    cfg = Annotators(accuracy=0.6)
    together = first_wins(cfg, GOOD_FIRST[:50])
    assert together == [first_wins(cfg, [item])[0] for item in GOOD_FIRST[:50]]
    assert first_wins(Annotators(accuracy=0.6, seed=1), GOOD_FIRST[:50]) != together


def test_what_was_cut_off_gets_no_answer():
    prompt, good, bad = GOOD_FIRST[0]
    cut = Response(text=good.text, token_ids=(1,), finish="length")
    cfg = Annotators(accuracy=1.0)
    assert first_wins(cfg, [(prompt, cut, bad)]) == [None]
    assert cfg.open().score([(prompt, cut)])[0].score is None
    assert verdict(prompt, good).score == 0.5


@pytest.mark.parametrize("fields", [{}, {"accuracy": 0.8, "temperature": 0.1}])
def test_one_way_to_err(fields):
    with pytest.raises(ConfigError, match="by temperature or by accuracy: set one"):
        parse(Annotators, fields, "judge")


def test_judges_are_found_by_name():
    assert resolve("judges", "playground/annotators", {}) is Annotators
