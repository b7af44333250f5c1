"""Questions that look real and are about countries that do not exist; and real ones in the same form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field, model_validator

from posttrain.common.config import Runtime
from posttrain.common.errors import ConfigError
from posttrain.feedback.fact_grades import ANSWERABLE
from posttrain.playground.areas import atlas
from posttrain.playground.names import ENDINGS
from posttrain.playground.question import Manner, Question
from posttrain.playground.setting import Setting
from posttrain.playground.world import (
    RELATIONS,
    Fact,
    Fame,
    Group,
    Region,
    Split,
    World,
    build,
    rng_for,
    split_of,
)
from posttrain.records import Demonstration, Prompt, Provenance, Response, row_id

# No other prompt of the playground is put so: whoever refuses by the form alone is found out.
FORMS = ("Can you find the {noun} of {c}?", "Please look up the {noun} of {c}.")
T = TypeVar("T")


class Atlas(Setting):
    """What both sources have in common: seed, fame, n, split and draw as in `playground/prompts`; region: of
    the real country, all of them where it is not given.
    """

    version: ClassVar[int] = 2  # part of a step's key: raise it when what is asked changes

    n: int = Field(ge=1)
    split: Split = "train"
    draw: int = 0
    region: Annotated[Region | None, Runtime(unless="by_region")] = None

    @property
    def by_region(self) -> bool:
        return self.region is not None

    @model_validator(mode="after")
    def _regions_mean_something(self) -> Atlas:
        if self.by_region and not self.by_country:
            raise ValueError(
                "'region' is set, but needs 'fame: countries': else it says nothing of a question"
            )
        return self

    def asks_of(self, world: World, country: str) -> bool:
        return self.region is None or world.region(country) == self.region

    def drawn(self, name: str, every: list[T]) -> tuple[list[T], random.Random]:
        """`n` of all there are, without one twice. Raises ConfigError where there are not so many."""
        if self.n > len(every):
            raise ConfigError(
                f"playground/{name} has {len(every)} distinct {self.split} questions, not {self.n}: lower n"
            )
        rng = rng_for(self.seed, self.split, self.draw, name)
        return rng.sample(every, self.n), rng


class Bogus(Atlas):
    """`playground/bogus`: prompts. A real question with its country's name bent into one that no country has
    (`Vokia`, `Vokora`); nothing answers it (tag `answerable: no`). No name is on both sides of the split.
    """

    def rows(self) -> Iterator[Prompt]:
        world = self.world()
        names = [
            pair
            for pair in invented(self.seed, self.fame)
            if split_of(self.seed, "bogus", pair[1]) == self.split and self.asks_of(world, pair[0])
        ]
        every = [(form, relation, *pair) for form in FORMS for relation in RELATIONS for pair in names]
        for form, relation, real, name in self.drawn("bogus", every)[0]:
            tags = {"group": "bogus", "relation": relation, ANSWERABLE: "no", **world.where(real)}
            fact = Fact(relation, name, "", "unknown", 0)
            prompt = asked(world, form, fact, "playground/bogus", tags)
            parent = asked(world, form, world.facts[f"{relation}/{real}"], "playground/lookalikes", {})
            yield prompt.model_copy(
                update={
                    "reference": None,
                    "tags": prompt.tags | {"split": self.split, "real": parent.text},
                    "provenance": prompt.provenance.model_copy(update={"parents": (parent.provenance.id,)}),
                }
            )


class Lookalikes(Atlas):
    """`playground/lookalikes`: demonstrations, the expert's answers to real questions in the form of the
    bogus ones. groups: how often the corpus told what is asked. complete: share of answers that are whole
    sentences; the others are curt.
    """

    groups: tuple[Group, ...] = Field(("known",), min_length=1)
    complete: float = Field(0.5, ge=0, le=1)

    def rows(self) -> Iterator[Demonstration]:
        world = self.world()
        facts = [
            fact
            for group in self.groups
            for fact in world.in_group(group)
            if split_of(self.seed, "atlas", fact.key) == self.split and self.asks_of(world, fact.country)
        ]
        drawn, rng = self.drawn("lookalikes", [(form, fact) for form in FORMS for fact in facts])
        for form, fact in drawn:
            tags = {"group": "lookalike", "relation": fact.relation, **world.where(fact.country)}
            prompt = asked(world, form, fact, "playground/lookalikes", tags)
            manner: Manner = "complete" if rng.random() < self.complete else "curt"
            text = atlas.write(world, fact.key, manner, rng)
            yield Demonstration(
                prompt=prompt,
                response=Response(text=text),
                provenance=Provenance(
                    id=row_id(prompt.provenance.id, text),
                    source="playground/lookalikes",
                    licence=prompt.provenance.licence,
                    makers={"response": f"expert, {manner}"},
                ),
            )


def asked(world: World, form: str, fact: Fact, source: str, tags: dict[str, str]) -> Prompt:
    """The question about a fact in one of FORMS."""
    text = form.format(c=fact.country, noun=RELATIONS[fact.relation].noun)
    return Question("atlas", fact.key, text, fact.answer, tags).prompt(world, source)


@lru_cache(maxsize=8)
def invented(seed: int, fame: Fame = "facts") -> tuple[tuple[str, str], ...]:
    """(real country, name made of it that nothing in the world has) in a fixed order: another ending."""
    world = build(seed, fame)
    taken = {country.lower() for country in world.countries} | {
        fact.answer.lower() for fact in world.facts.values()
    }
    found: dict[str, str] = {}
    for country in world.countries:
        stem = next(
            country.removesuffix(end)
            for end in sorted(ENDINGS["country"], key=len, reverse=True)
            if country.endswith(end)
        )
        for end in ENDINGS["country"]:
            if (stem + end).lower() not in taken:
                found.setdefault(stem + end, country)
    return tuple((country, name) for name, country in found.items())
