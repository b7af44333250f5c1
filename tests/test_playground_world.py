"""The world and its corpus: everything follows from a seed, and how often a fact is told is exact."""

import math
import re
from collections import Counter
from functools import cache

import pytest

from posttrain.common.errors import ConfigError
from posttrain.playground.sources import Corpus
from posttrain.playground.world import (
    GROUPS,
    KNOWN_AT_LEAST,
    RELATIONS,
    ZIPF,
    build,
    split_of,
)

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
