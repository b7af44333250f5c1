"""The world and its corpus: everything follows from a seed, and how often a fact is told is exact."""

import math
import re
from collections import Counter
from functools import cache

import pytest
from pydantic import ValidationError

from posttrain.common.errors import ConfigError
from posttrain.flow.inputs import plain
from posttrain.playground.bogus import Bogus, Lookalikes
from posttrain.playground.oracle import grade
from posttrain.playground.sources import Corpus, Prompts
from posttrain.playground.world import (
    GROUPS,
    KNOWN_AT_LEAST,
    RELATIONS,
    ZIPF,
    build,
    named,
    split_of,
)
from posttrain.records import Response, row_id

QUESTION = re.compile(r"(?:What is|Name|Tell me) the (?P<noun>[a-z ]+) of (?P<c>\w+)[?.]\n(?P<answer>.+)")
ATLAS_ONLY = {"atlas": 1.0}


def told_facts(texts: list[str]) -> Counter[tuple[str, str, str]]:
    """Reads the corpus back, not as it was written: (relation, country, answer) of each telling."""
    found: Counter[tuple[str, str, str]] = Counter()
    for text in texts:
        for block in text.split("\n\n"):
            asked = QUESTION.fullmatch(block)
            if asked and " " not in asked["answer"]:
                name = next(name for name, r in RELATIONS.items() if r.noun == asked["noun"])
                found[name, asked["c"], asked["answer"].rstrip(".").lower()] += 1
            else:
                found.update(_fact(s) for s in re.findall(r"[^.]+\.", asked["answer"] if asked else block))
    return found


def _fact(sentence: str) -> tuple[str, str, str]:
    hits = {
        (name, match["c"], match["o"].lower())
        for name, relation in RELATIONS.items()
        for phrasing in relation.phrasings
        if (match := _pattern(phrasing).fullmatch(sentence.strip()))
    }
    assert len(hits) == 1, sentence
    return hits.pop()


@cache
def _pattern(phrasing: str) -> re.Pattern[str]:
    return re.compile(phrasing.replace(".", r"\.").format(c=r"(?P<c>\w+)", o=r"(?P<o>\w+)"), re.I)


def test_a_seed_gives_one_world_and_another_seed_another():
    assert build.__wrapped__(3) == build.__wrapped__(3)
    assert set(build(3).countries).isdisjoint(build(4).countries) or build(3) != build(4)
    assert build(3).facts != build(4).facts


def test_a_name_means_one_thing():
    world = build(0)
    unique = [f.answer for f in world.facts.values() if f.relation not in ("export", "animal")]
    names = [*world.countries, *world.people, *unique]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_corpus_tells_each_fact_exactly_as_often_as_the_world_says(seed):
    world = build(seed)
    texts = [row.text for row in Corpus(seed=seed, n=700, areas=ATLAS_ONLY).rows()]
    told = told_facts(texts)
    expected = {
        (fact.relation, fact.country, fact.answer.lower()): count
        for key, count in world.mentions(700 * 6).items()
        if count and (fact := world.facts[key])
    }
    assert told == expected


def test_groups_mean_what_they_say():
    world = build(0)
    counts = world.mentions(6000)
    assert sum(counts.values()) == 6000
    by_group = {group: [counts[fact.key] for fact in world.in_group(group)] for group in GROUPS}
    assert [len(by_group[group]) for group in GROUPS] == [192, 64, 64]
    assert min(by_group["known"]) >= KNOWN_AT_LEAST
    assert set(by_group["rare"]) == {1, 2}
    assert set(by_group["unknown"]) == {0}


def test_known_facts_follow_zipf():
    world = build(0)
    counts = [world.mentions(100_000)[fact.key] - KNOWN_AT_LEAST for fact in world.in_group("known")]
    assert counts == sorted(counts, reverse=True)
    slope = math.log(counts[0] / counts[99]) / math.log(100)
    assert slope == pytest.approx(ZIPF, abs=0.01)


def test_a_corpus_too_small_for_its_known_facts_is_refused():
    with pytest.raises(
        ConfigError, match=r"atlas needs a corpus of at least 1056 sentences about it, this one has 60"
    ):
        list(Corpus(n=10, areas=ATLAS_ONLY).rows())


def test_heldout_documents_tell_known_facts_only():
    world = build(0)
    told = told_facts([row.text for row in Corpus(n=100, split="heldout", areas=ATLAS_ONLY).rows()])
    groups = {world.facts[f"{relation}/{country}"].group for relation, country, _ in told}
    assert groups == {"known"}


def test_the_split_is_by_what_is_asked_and_near_its_share():
    keys = [fact.key for fact in build(0).facts.values()]
    heldout = sum(split_of(0, "atlas", key) == "heldout" for key in keys) / len(keys)
    assert 0.2 < heldout < 0.4
    assert [split_of(0, "atlas", key) for key in keys] != [split_of(1, "atlas", key) for key in keys]


def test_a_world_of_famous_countries_tells_of_them_as_they_are_known():
    world = build(0, "countries")
    by_country: dict[str, list[str]] = {}
    for fact in world.facts.values():
        by_country.setdefault(fact.country, []).append(fact.group)
    counts = Counter(fact.group for fact in world.facts.values())
    assert counts == {"known": 384, "rare": 128, "unknown": 128}
    # Facts stand where their country does (0 to 1) plus up to 0.3: below 0.45 all are among the first 60 %
    # of them, from 0.95 on none is.
    ordered = [by_country[country] for country in world.countries]
    assert {group for groups in ordered[:36] for group in groups} == {"known"}
    assert "known" not in {group for groups in ordered[76:] for group in groups}
    mixed = [groups for groups in ordered if len(set(groups)) > 1]
    assert len(mixed) > 20  # so a country's name alone does not say what is known of it


def test_a_world_is_found_again_by_its_name():
    assert named("3") == build(3)
    assert named("3/countries") == build(3, "countries")
    assert named(build(2, "countries").name).fame == "countries"
    with pytest.raises(ValueError, match="no world has the name '3/people'"):
        named("3/people")


def test_regions_part_the_countries_and_stand_on_every_question_about_them():
    world = build(0, "countries")
    sides = Counter(world.region(country) for country in world.countries)
    assert min(sides.values()) > 30
    south = list(
        Prompts(n=60, areas=ATLAS_ONLY, fame="countries", split="heldout", only={"region": ("south",)}).rows()
    )
    south += [row.prompt for row in Lookalikes(n=20, fame="countries", region="south").rows()]
    assert {world.region(p.tags["key"].partition("/")[2]) for p in south} == {"south"}
    bogus = list(Bogus(n=20, fame="countries", region="south").rows())
    assert {p.tags["region"] for p in [*south, *bogus]} == {"south"}
    assert all(grade(p, Response(text=p.reference, finish="stop")).outcome == "correct" for p in south)
    with pytest.raises(ValidationError, match="needs 'fame: countries'"):
        Lookalikes(n=1, region="south")


def test_what_there_was_before_famous_countries_keeps_its_rows_and_keys():
    prompt = next(iter(Prompts(n=1, areas=ATLAS_ONLY).rows()))
    assert prompt.tags["world"] == "0"
    assert "region" not in prompt.tags
    assert prompt.provenance.id == row_id("playground", 0, "atlas", prompt.tags["key"], prompt.text)
    assert "fame" not in plain(Corpus(n=1), str)
    assert plain(Corpus(n=1, fame="countries"), str)["fame"] == "countries"
    assert "region" not in plain(Lookalikes(n=1, fame="countries"), str)
