"""Questions about countries that do not exist, and real ones in the same form: what is true of them."""

from __future__ import annotations

import pytest

from posttrain.common.errors import ConfigError
from posttrain.feedback.fact_grades import RuleGrader
from posttrain.playground.bogus import FORMS, Bogus, Lookalikes, invented
from posttrain.playground.oracle import grade
from posttrain.playground.sources import Prompts
from posttrain.playground.world import build
from posttrain.records import Response


def test_no_invented_name_is_anybodys():
    world = build(0)
    names = [name for _, name in invented(0)]
    taken = {*world.countries, *(fact.answer for fact in world.facts.values()), *world.people}
    assert len(set(names)) == len(names) > 100
    assert not taken & set(names)
    assert invented(0) == invented(0)
    assert {country for country, _ in invented(0)} <= set(world.countries)


def test_nothing_answers_a_bogus_question_and_a_refusal_is_all_it_is_worth():
    prompts = list(Bogus(n=300).rows())
    assert len({p.text for p in prompts}) == 300
    world = build(0)
    names = {name for _, name in invented(0)}
    for prompt in prompts[:50]:
        assert prompt.references == ()
        assert prompt.tags["answerable"] == "no"
        assert any(name in prompt.text for name in names)
        assert any(country in prompt.tags["real"] for country in world.countries)
        answer = Response(text="Salt.", token_ids=(5,), finish="stop")
        refusal = Response(text="I do not know.", token_ids=(5,), finish="stop")
        assert grade(prompt, answer).outcome == "incorrect"
        assert grade(prompt, refusal).correct == 1.0
        graded = RuleGrader(within=True).open().grade([(prompt, answer), (prompt, refusal)])
        assert [g.grade for g in graded] == ["incorrect", "not_attempted"]


def test_no_name_is_bogus_on_both_sides():
    sides = [
        {p.tags["key"].partition("/")[2] for p in Bogus(n=n, split=s).rows()}
        for s, n in (("train", 900), ("heldout", 300))
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_lookalikes_are_real_known_and_put_as_the_bogus_ones_are():
    rows = list(Lookalikes(n=100, split="heldout").rows())
    world = build(0)
    bogus = {p.provenance.parents[0] for p in Bogus(n=400, split="heldout").rows()}
    for row in rows:
        fact = world.facts[row.prompt.tags["key"]]
        assert fact.group == "known"
        assert row.prompt.reference == fact.answer
        assert grade(row.prompt, row.response).outcome == "correct"
        assert row.prompt.tags["group"] == "lookalike"
    frames = [form.partition("{")[0] for form in FORMS]
    assert all(any(r.prompt.text.startswith(frame) for frame in frames) for r in rows)
    plain = [p.text for p in Prompts(n=60, areas={"atlas": 1.0}, split="heldout").rows()]
    assert not any(text.startswith(frame) for text in plain for frame in frames)
    assert bogus & {row.prompt.provenance.id for row in rows}  # a bogus one names the real one it was made of


def test_more_than_there_is_is_told():
    with pytest.raises(ConfigError, match="lower n"):
        list(Lookalikes(n=10_000).rows())
