"""The weighted sum of judges: by hand, silent where a part is, and as the reward of training."""

from __future__ import annotations

import pytest

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError
from posttrain.feedback.weighted_sum import WeightedSum
from posttrain.records import Message, Prompt, Provenance, Response

EXACT = {"name": "exact_match"}
SHOUT = {"name": "pattern", "pattern": "!"}


def item(text, reference="yes"):
    messages = (Message(role="user", content="?"),)
    return Prompt(messages=messages, reference=reference, provenance=Provenance(id="p")), Response(text=text)


def opened(*parts):
    return parse(WeightedSum, {"parts": list(parts)}, "test").open()


def test_by_hand():
    judge = opened({"judge": EXACT, "weight": 2.0}, {"judge": SHOUT, "weight": -0.5, "name": "shouting"})
    both, right, wrong = judge.score([item("yes!"), item("yes"), item("no")])
    assert (both.score, right.score, wrong.score) == (1.5, 2.0, 0.0)
    assert dict(both.parts) == {"exact_match": 1.0, "shouting": 1.0}


def test_a_part_without_an_answer_leaves_the_sum_without_one():
    judge = opened({"judge": EXACT}, {"judge": SHOUT})
    (verdict,) = judge.score([item("yes!", reference=None)])
    assert verdict.score is None
    assert "exact_match: the prompt has no reference" in verdict.reason
    assert dict(verdict.parts) == {"exact_match": None, "pattern": 1.0}


def test_parts_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two parts are called 'pattern'"):
        opened({"judge": SHOUT}, {"judge": SHOUT})
