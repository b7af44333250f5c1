"""The playground's rows: a corpus, prompts, an expert's demonstrations, judged pairs of its answers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import Field, field_validator

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.playground.annotators import Annotators
from posttrain.playground.areas import AREAS
from posttrain.playground.oracle import verdict
from posttrain.playground.question import Manner, Question
from posttrain.playground.setting import Setting
from posttrain.playground.world import Split, World, rng_for, split_of
from posttrain.records import Comparison, Demonstration, Document, Prompt, Provenance, Response, row_id

TRIES = 1000  # draws for one question, before its area counts as exhausted
LICENCE = "Apache-2.0"


class PlaygroundSource(Setting):
    """What all of the playground's sources have in common.

    n: rows. split: of the questions; no question is on both sides, in whatever words.
    draw: another number draws other rows from the same world.
    areas: share of the rows by area, in any units.
    """

    version: ClassVar[int] = 1  # part of a step's key: raise it when the world or what is told of it changes

    n: int = Field(ge=1)
    split: Split = "train"
    draw: int = 0
    areas: dict[str, float] = dict.fromkeys(AREAS, 1.0)

    @field_validator("areas")
    @classmethod
    def _known(cls, areas: dict[str, float]) -> dict[str, float]:
        for name, share in areas.items():
            if name not in AREAS:
                raise ValueError(f"no area '{name}': {nearest(name, list(AREAS))}")
            if share < 0:
                raise ValueError(f"the share of '{name}' is negative")
        if not sum(areas.values()):
            raise ValueError("no area has a share")
        return areas

    def counts(self) -> dict[str, int]:
        """Rows of each area: in proportion to its share, the largest remainders rounded up, `n` in all."""
        total = sum(self.areas.values())
        exact = {area: self.n * share / total for area, share in self.areas.items()}
        counts = {area: int(count) for area, count in exact.items()}
        by_remainder = sorted(exact, key=lambda area: counts[area] - exact[area])
        return counts | {area: counts[area] + 1 for area in by_remainder[: self.n - sum(counts.values())]}

    def rng(self, *what: str) -> random.Random:
        return rng_for(self.seed, self.split, self.draw, *what)


class Corpus(PlaygroundSource):
    """`playground/corpus`: documents to pretrain on.

    It poses no question of the other split, but tells the atlas's facts for both: nowhere else are they told.
    """

    areas: dict[str, float] = Field({"atlas": 0.4, "arithmetic": 0.25, "format": 0.15, "letters": 0.2})

    def rows(self) -> Iterator[Document]:
        world = self.world()
        told = [
            (area, text)
            for area, n in self.counts().items()
            for text in AREAS[area].tell(world, n, self.split, self.rng("corpus", area))
        ]
        self.rng("corpus").shuffle(told)
        for i, (area, text) in enumerate(told):
            yield Document(text=text, provenance=_provenance(self, "corpus", i, area, text))


class Questions(PlaygroundSource):
    """A source that draws questions.

    only: keeps the questions whose tag is among the values, as in {"group": ["known"], "level": ["1", "2"]};
    a question without the tag stays.
    """

    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def questions(self, distinct: bool) -> Iterator[Question]:
        """`n` questions of the split, area by area; those of one area do not depend on the other areas.

        Raises ConfigError where an area has not so many (distinct) ones.
        """
        world = self.world()
        for area, n in self.counts().items():
            rng = self.rng("questions", area)
            seen: set[str] = set()
            for _ in range(n):
                question = self._one(world, area, seen, rng)
                if distinct:
                    seen.add(question.text)
                yield question

    def _one(self, world: World, area: str, seen: set[str], rng: random.Random) -> Question:
        for _ in range(TRIES):
            question = AREAS[area].ask(world, rng)
            wanted = all(question.tags.get(tag, values[0]) in values for tag, values in self.only.items())
            if (
                wanted
                and question.text not in seen
                and split_of(world.seed, area, question.key) == self.split
            ):
                return question
        raise ConfigError(
            f"the area '{area}' has no more than {len(seen)} distinct {self.split} prompts"
            + (f" with {self.only}" if self.only else "")
            + ": ask for fewer (n), or give the area a smaller share (areas)"
        )


class Prompts(Questions):
    """`playground/prompts`: distinct questions with their reference answers."""

    def rows(self) -> Iterator[Prompt]:
        world, rng = self.world(), self.rng("prompts")
        questions = list(self.questions(distinct=True))
        rng.shuffle(questions)
        for question in questions:
            yield question.prompt(world, "playground/prompts")


class Written(Questions):
    """A source of the expert's answers. manners: shares, in any units, of complete, curt and wrong ones."""

    only: dict[str, tuple[str, ...]] = Field({"group": ("known", "rare")})
    manners: dict[Manner, float]

    @field_validator("manners")
    @classmethod
    def _some(cls, manners: dict[Manner, float]) -> dict[Manner, float]:
        if not manners or min(manners.values()) < 0 or not sum(manners.values()):
            raise ValueError("manners need a share above 0, and none below")
        return manners

    def manner(self, rng: random.Random) -> Manner:
        return rng.choices(list(self.manners), list(self.manners.values()))[0]


class Demonstrations(Written):
    """`playground/demonstrations`: correct, but half of them curt: preferences have something to teach."""

    manners: dict[Manner, float] = Field({"complete": 0.5, "curt": 0.5})

    def rows(self) -> Iterator[Demonstration]:
        world, rng = self.world(), self.rng("demonstrations")
        questions = list(self.questions(distinct=False))
        rng.shuffle(questions)
        for i, question in enumerate(questions):
            manner = self.manner(rng)
            text = AREAS[question.area].write(world, question.key, manner, rng)
            prompt = question.prompt(world, "playground/demonstrations")
            makers = {"response": f"expert, {manner}"}
            provenance = _provenance(self, "demonstrations", i, prompt.provenance.id, text, makers=makers)
            yield Demonstration(prompt=prompt, response=Response(text=text), provenance=provenance)


class Comparisons(Written):
    """`playground/comparisons`: two answers of the expert to one question, in different manners.

    annotators: who prefers one; the oracle where None. A pair of equal worth, or that nobody judged, is drawn
    anew.
    """

    manners: dict[Manner, float] = Field({"complete": 1.0, "curt": 1.0, "wrong": 1.0})
    annotators: Annotators | None = None

    @field_validator("manners")
    @classmethod
    def _two(cls, manners: dict[Manner, float]) -> dict[Manner, float]:
        if sum(share > 0 for share in manners.values()) < 2:
            raise ValueError("a comparison needs two manners with a share above 0")
        return manners

    def rows(self) -> Iterator[Comparison]:
        world, rng = self.world(), self.rng("comparisons")
        for i, question in enumerate(self.questions(distinct=False)):
            prompt = question.prompt(world, "playground/comparisons")
            yield self._comparison(world, prompt, question, i, rng)

    def _comparison(
        self, world: World, prompt: Prompt, question: Question, i: int, rng: random.Random
    ) -> Comparison:
        write = AREAS[question.area].write
        for _ in range(TRIES):
            manners = self.manner(rng), self.manner(rng)
            first, second = (Response(text=write(world, question.key, manner, rng)) for manner in manners)
            gap = (verdict(prompt, first).score or 0.0) - (verdict(prompt, second).score or 0.0)
            probability = self._probability(prompt, first, second, gap)
            if gap == 0 or probability is None:
                continue
            if probability < 0.5:
                first, second, manners, probability = second, first, manners[::-1], 1 - probability
            makers = {"chosen": f"expert, {manners[0]}", "rejected": f"expert, {manners[1]}"}
            return Comparison(
                prompt=prompt,
                chosen=first,
                rejected=second,
                strength=abs(gap) if self.annotators is None else None,
                probability=probability,
                judge="playground/oracle" if self.annotators is None else "playground/annotators",
                provenance=_provenance(self, "comparisons", i, prompt.provenance.id, makers=makers),
            )
        raise ConfigError(
            f"no pair of answers to '{prompt.text}' was judged in {TRIES} tries: lower no_answer"
        )

    def _probability(self, prompt: Prompt, first: Response, second: Response, gap: float) -> float | None:
        if self.annotators is None:
            return float(gap > 0)
        return self.annotators.open().compare([(prompt, first, second)])[0].probability


def _provenance(
    cfg: PlaygroundSource, name: str, i: int, *parts: str, makers: Mapping[str, str] | None = None
) -> Provenance:
    return Provenance(
        id=row_id(name, cfg.seed, cfg.split, cfg.draw, i, *parts),
        source=f"playground/{name}:{i + 1}",
        licence=LICENCE,
        makers=dict(makers or {"text": f"posttrain.playground, world {cfg.world().name}"}),
    )
