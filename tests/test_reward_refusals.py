"""What reward training and KTO refuse to begin with, and scores of any size."""

from __future__ import annotations

import math
from typing import Any

import pytest

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.records import Comparison, Message, Prompt, Provenance, Rating, Response
from posttrain.training.methods import kto, reward
from posttrain.training.methods.kto import KTO
from posttrain.training.methods.reward import Reward
from posttrain.training.methods.scales import scale_of


def prompt(text: str) -> Prompt:
    return Prompt(provenance=Provenance(id=text), messages=(Message(role="user", content=text),))


def rating(id: str, label: bool | None = None, asked: str = "Well?", **scores: float | None) -> Rating:
    return Rating(
        provenance=Provenance(id=id),
        prompt=prompt(asked),
        response=Response(text=id),
        scores=scores,
        label=label,
    )


def pair(id: str, aspect: str = "overall", asked: str = "Well?") -> Comparison:
    return Comparison(
        provenance=Provenance(id=id),
        prompt=prompt(asked),
        chosen=Response(text="yes"),
        rejected=Response(text="no"),
        aspect=aspect,
    )


def test_a_head_that_no_row_trains_is_refused():
    cfg = Reward(heads=("helpfulness", "safety"))
    rated = [rating("a", helpfulness=1.0, safety=None), rating("b", helpfulness=2.0)]
    with pytest.raises(DataError, match="not one of the 2 training rows compares or rates 'safety'"):
        reward.settle(cfg, rated)
    with pytest.raises(DataError, match="rates 'safety'"):  # a label is for "overall", or for the only head
        reward.settle(cfg, [*rated, rating("c", True), rating("d", False)])
    assert reward.settle(cfg, [*rated, pair("c", "safety")]).scales is not None
    assert reward.settle(Reward(heads=("wit",)), [rating("c", True), rating("d", False)]).label_threshold == 0


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        (["a", "a"], "'a' stands twice; several heads of one aspect are `members`"),
        (["a", ""], "a head needs a name"),
        (["a", " "], "a head needs a name"),
        (["a", "a.0"], "'a.0' is how a member of an aspect is called"),
        (["v.12"], "'v.12' is how a member"),
    ],
)
def test_heads_that_cannot_be_told_apart_are_refused(heads, says):
    with pytest.raises(ConfigError) as e:
        parse(Reward, {"heads": heads}, "method")
    assert says in str(e.value)
    assert parse(Reward, {"heads": ["v1.2 b", "a"]}, "method").heads == ("v1.2 b", "a")


def test_labels_that_are_all_the_same_teach_nothing():
    good = [rating("a", True), rating("b", True)]
    with pytest.raises(DataError, match="all 2 labels are good"):
        reward.settle(Reward(), good)
    with pytest.raises(DataError, match="all 1 labels are bad"):
        reward.settle(Reward(), [rating("a", False), pair("p")])
    reward.settle(Reward(), [*good, rating("c", False)])
    given = Reward(label_threshold=0.5)  # then a label says on which side of it an answer lies
    assert reward.settle(given, good) == given
    # labels beside scores are put aside, so they may be what they will
    scored = [rating("a", True, overall=1.0), rating("b", True, overall=2.0)]
    assert reward.settle(Reward(), scored).scales["overall"].mean == 1.5


@pytest.mark.parametrize("unit", [1.0, 1e200, 1e-200, -1e307])
def test_scores_of_any_size_have_a_scale(unit):
    """1, 2 and 6 lie at mean 3 with variance 14/3, in any unit."""
    found = scale_of("overall", [1 * unit, 2 * unit, 6 * unit], False, 0.5)
    assert found.mean == pytest.approx(3 * unit)
    assert found.std == pytest.approx(math.sqrt(14 / 3) * abs(unit))
    assert found.place(6 * unit) == pytest.approx(math.copysign(3 / math.sqrt(14 / 3), unit))


@pytest.mark.parametrize("scores", [[1.7e308, 1.6e308], [-1.7e308, -1.6e308, 1.0]])
def test_scores_beyond_floating_point_are_said_to_be_so(scores):
    with pytest.raises(DataError, match=r"the scores of 'overall', from .* give them in other units"):
        scale_of("overall", scores, False, 0.5)


def settled(rows: list[Any], **fields: Any) -> KTO:
    return kto.settle(KTO(**fields), rows)


def test_kto_needs_good_answers_and_bad_ones():
    good = [rating(f"g{i}", True, f"Q{i}?") for i in range(3)]
    with pytest.raises(DataError, match="kto: all 3 answers are good"):
        settled(good)
    scored = [rating(f"s{i}", None, f"Q{i}?", overall=float(i)) for i in range(3)]
    with pytest.raises(DataError, match=r"all 3 answers are bad.*mend method\.good_above"):
        settled(scored, good_above=50.0)
    assert settled(scored, good_above=1.0) == KTO(good_above=1.0)
    assert settled([*good, rating("b", False)]) == KTO()
    assert settled([*good, pair("p", asked="Other?")]) == KTO()  # a comparison has both
    assert settled([]) == KTO()  # answers are sampled


def test_kto_needs_a_second_prompt_to_estimate_its_reference_point():
    rows = [rating("a", True), rating("b", False)]
    with pytest.raises(DataError, match=r"all 2 rows share one prompt.*method\.reference_point: zero"):
        settled(rows)
    assert settled(rows, reference_point="zero") == KTO(reference_point="zero")
    assert settled([*rows, rating("c", True, "Other?")]) == KTO()
