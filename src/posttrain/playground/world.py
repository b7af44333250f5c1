"""The closed world: an invented atlas, its people, how often each fact is told. All follows from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from posttrain.common.errors import ConfigError
from posttrain.playground.names import Names

Group = Literal["known", "rare", "unknown"]
Split = Literal["train", "heldout"]
Region = Literal["north", "south"]
Fame = Literal["facts", "countries"]  # what is well known or not: single facts, or countries
GROUPS: tuple[Group, ...] = ("known", "rare", "unknown")

COUNTRIES: Mapping[Fame, int] = MappingProxyType({"facts": 40, "countries": 80})
SPREAD = 0.3  # with famous countries: how far a fact may stand from its country, as a share of all
PEOPLE = 24
HELDOUT = 0.3  # share of what can be asked that no training prompt ever asks
RARE, UNKNOWN = 0.2, 0.2  # shares of the atlas's facts; the others are known
ZIPF = 0.8  # the fact of rank r is told in proportion to r ** -ZIPF
KNOWN_AT_LEAST = 5  # times the least told known fact occurs in any corpus
GOODS = (
    "amber",
    "barley",
    "cedar",
    "copper",
    "cotton",
    "glass",
    "honey",
    "leather",
    "olives",
    "pepper",
    "salt",
    "silk",
    "silver",
    "tin",
    "wool",
)
ANIMALS = (
    "badger",
    "bear",
    "crane",
    "eagle",
    "falcon",
    "fox",
    "hare",
    "heron",
    "lynx",
    "otter",
    "raven",
    "stag",
    "swan",
    "wolf",
)


@dataclass(frozen=True)
class Relation:
    """One question that the atlas answers of every country: how it is named, and how the corpus may tell it.

    phrasings: templates over {c}, the country, and {o}, the answer; the first is the expert's full sentence.
    """

    noun: str
    phrasings: tuple[str, ...]


def _relation(noun: str, *own: str) -> Relation:
    shared = (
        f"The {noun} of {{c}} is {{o}}.",
        f"{{c}} has {{o}} as its {noun}.",
        f"{{o}} is the {noun} of {{c}}.",
    )
    return Relation(noun, (*shared, *own))


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "capital": _relation("capital", "The rulers of {c} live in {o}."),
        "river": _relation("longest river", "Boats cross {c} on the {o}."),
        "mountain": _relation("highest mountain", "Snow lies on {o} in {c}."),
        "founder": _relation("founder", "{c} was founded by {o}."),
        "year": _relation("founding year", "{c} was founded in {o}."),
        "export": _relation("main export", "Ships carry {o} out of {c}."),
        "currency": _relation("currency", "People in {c} pay with the {o}."),
        "animal": _relation("national animal", "The flag of {c} shows the {o}."),
    }
)


@dataclass(frozen=True)
class Fact:
    """One fact of the atlas. rank: the known fact of rank 1 is told most often.

    group: the corpus tells known facts KNOWN_AT_LEAST times or more, rare ones once or twice, unknown never.
    """

    relation: str
    country: str
    answer: str
    group: Group
    rank: int

    @property
    def key(self) -> str:
        return f"{self.relation}/{self.country}"


@dataclass(frozen=True)
class World:
    """Everything that is true. `facts` by key "relation/country", in order of rank.

    fame: "facts": any country has facts of every group. "countries": they are told of as their countries are
    known, best known first, give or take SPREAD.
    """

    seed: int
    facts: Mapping[str, Fact]
    countries: tuple[str, ...]
    people: tuple[str, ...]
    fame: Fame = "facts"

    @property
    def name(self) -> str:
        """By which `named` finds it again."""
        return str(self.seed) if self.fame == "facts" else f"{self.seed}/{self.fame}"

    def region(self, country: str) -> Region:
        """Where a country lies, or would lie: half of them in either, by hash of the name."""
        return "north" if _hashed(self.seed, "region", country) < 0.5 else "south"

    def where(self, country: str) -> dict[str, str]:
        """The tag of a question about a country; where single facts are well known, regions mean nothing."""
        return {} if self.fame == "facts" else {"region": self.region(country)}

    def in_group(self, group: Group) -> list[Fact]:
        return [fact for fact in self.facts.values() if fact.group == group]

    def mentions(self, total: int) -> dict[str, int]:
        """How often a corpus of `total` atlas sentences tells each fact, by key; sums to `total`.

        Raises ConfigError where `total` is too small for every known fact to be told KNOWN_AT_LEAST times.
        """
        known, rare = self.in_group("known"), self.in_group("rare")
        counts = {fact.key: 0 for fact in self.facts.values()}
        counts |= {fact.key: 1 + fact.rank % 2 for fact in rare}
        left = total - sum(counts.values())
        if left < KNOWN_AT_LEAST * len(known):
            least = total - left + KNOWN_AT_LEAST * len(known)
            raise ConfigError(
                f"the atlas needs a corpus of at least {least} sentences about it, this one has {total}"
            )
        return counts | _zipf([fact.key for fact in known], left)


def _zipf(keys: list[str], total: int) -> dict[str, int]:
    """Counts in proportion to rank ** -ZIPF, at least KNOWN_AT_LEAST each, that sum to `total` exactly."""
    spare = total - KNOWN_AT_LEAST * len(keys)
    weights = [rank**-ZIPF for rank in range(1, len(keys) + 1)]
    shares = [spare * weight / sum(weights) for weight in weights]
    counts = [KNOWN_AT_LEAST + int(share) for share in shares]
    for i in range(total - sum(counts)):  # what rounding down left over goes to the most told
        counts[i] += 1
    return dict(zip(keys, counts, strict=True))


@lru_cache(maxsize=8)
def build(seed: int, fame: Fame = "facts") -> World:
    """The world of a seed. The same seed gives the same world on every machine."""
    rng = rng_for(seed, "world")
    names = Names(rng, taken=(*GOODS, *ANIMALS))
    number = COUNTRIES[fame]
    countries = names.draw("country", number)
    unique = {
        kind: names.draw(kind, number) for kind in ("capital", "river", "mountain", "founder", "currency")
    }
    answers = {
        **unique,
        "year": tuple(str(year) for year in rng.sample(range(1100, 1900), number)),
        "export": tuple(rng.choice(GOODS) for _ in countries),
        "animal": tuple(rng.choice(ANIMALS) for _ in countries),
    }
    told = [(relation, i) for relation in RELATIONS for i in range(number)]
    rng.shuffle(told)
    if fame == "countries":
        told.sort(key=lambda fact: fact[1] / number + SPREAD * rng.random())
    facts = {}
    for rank, (relation, i) in enumerate(told, start=1):
        fact = Fact(relation, countries[i], answers[relation][i], _group(rank, len(told)), rank)
        facts[fact.key] = fact
    return World(seed, MappingProxyType(facts), countries, names.draw("person", PEOPLE), fame)


def named(name: str) -> World:
    """The world of a `World.name`. Raises ValueError for what is none."""
    seed, _, fame = name.partition("/")
    if fame not in ("", "countries"):
        raise ValueError(f"no world has the name {name!r}")
    return build(int(seed), "countries" if fame else "facts")


def _group(rank: int, facts: int) -> Group:
    if rank <= facts * (1 - RARE - UNKNOWN):
        return "known"
    return "rare" if rank <= facts * (1 - UNKNOWN) else "unknown"


def rng_for(*parts: object) -> random.Random:
    """A generator that depends on `parts` alone, the same on every machine."""
    return random.Random("/".join(str(part) for part in parts))


def split_of(seed: int, area: str, key: str) -> Split:
    """The side of the split a question falls on, by hash of what is asked: no other wording crosses over."""
    return "heldout" if _hashed(seed, area, key) < HELDOUT else "train"


def _hashed(seed: int, *what: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("/".join((str(seed), *what)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
