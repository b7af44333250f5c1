"""What an area of the playground consists of: questions, an expert, an exact grade, documents."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from posttrain.common.errors import DataError
from posttrain.playground.world import Split, World, named, split_of
from posttrain.records import Message, Prompt, Provenance, row_id

Manner = Literal["complete", "curt", "wrong"]
Outcome = Literal["correct", "declined", "incorrect"]
MANNERS: tuple[Manner, ...] = get_args(Manner)
WRONG_AT_BEST = 0.2  # a faultless manner around a wrong answer
CORRECT_AT_LEAST = 0.5  # the curtest correct answer
REPEATABLE = frozenset(
    ("a", "an", "and", "for", "i", "in", "is", "it", "of", "on", "the", "to", "you", "your")
)


@dataclass(frozen=True)
class Question:
    """Something the world can be asked.

    key: the whole of what is asked, whatever the words; it decides the split.

    tags: `group` (atlas) or `level` (arithmetic) and the like, by which results are broken down.
    """

    area: str
    key: str
    text: str
    reference: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, world: World, source: str) -> Prompt:
        """The question as a row; its tags are all that the oracle needs to judge an answer."""
        tags = {"world": world.name, "area": self.area, "key": self.key, **self.tags}
        tags["split"] = split_of(world.seed, self.area, self.key)
        provenance = Provenance(
            id=row_id("playground", *_of(world), self.area, self.key, self.text),
            source=source,
            licence="Apache-2.0",
            makers={"prompt": f"posttrain.playground, world {world.name}"},
        )
        message = Message(role="user", content=self.text)
        return Prompt(messages=(message,), reference=self.reference, tags=tags, provenance=provenance)


@dataclass(frozen=True)
class Grade:
    """What is true of one answer.

    correct: 1 right, 0 wrong, between for an honest "I do not know" where the answer could be known.
    manner: the parts, each in [0, 1], by which one correct answer is better than another.
    clean: the share of the text that is the answer, each thing said once; padding and repetition lower it.
    answered: the text has the form of an answer to this question, right or wrong.
    """

    correct: float
    manner: Mapping[str, float]
    clean: float
    answered: bool
    outcome: Outcome

    @property
    def score(self) -> float:
        """Quality in [0, 1]: correctness first, then manner, both diluted by what does not belong there."""
        manner = sum(self.manner.values()) / len(self.manner)
        right = CORRECT_AT_LEAST + (1 - CORRECT_AT_LEAST) * manner
        return self.clean * (self.correct * right + (1 - self.correct) * WRONG_AT_BEST * manner)


@dataclass(frozen=True)
class Area:
    """One part of the world.

    ask: draws a question. write: the expert's answer to a key, in a manner. grade: of a text, for a key.
    tell: that many documents of one split.
    """

    ask: Callable[[World, random.Random], Question]
    write: Callable[[World, str, Manner, random.Random], str]
    grade: Callable[[World, str, str], Grade]
    tell: Callable[[World, int, Split, random.Random], Iterator[str]]


def _of(world: World) -> tuple[object, ...]:
    """What the ids of a world's rows begin with."""
    return (world.seed,) if world.fame == "facts" else (world.seed, world.fame)


def spec_of(prompt: Prompt) -> tuple[World, str, str]:
    """(world, area, key) of a prompt that the playground asked.

    Raises DataError for a prompt that came from elsewhere: the oracle knows nothing of it.
    """
    try:
        return named(prompt.tags["world"]), prompt.tags["area"], prompt.tags["key"]
    except (KeyError, ValueError):
        raise DataError(
            f"prompt {prompt.provenance.id} is not the playground's: it lacks the tags world, area and key; "
            "the oracle judges only what playground/prompts asked"
        ) from None


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line break ends one too."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def words(text: str) -> list[str]:
    """Lower-cased words and numbers, punctuation left out."""
    return re.findall(r"[a-z0-9']+", text.lower())


def share(parts: Iterable[str], text: str) -> float:
    """How much of a text its `parts` make up, in characters without white space; 0 for an empty text."""
    whole = len("".join(text.split()))
    return sum(len("".join(part.split())) for part in parts) / whole if whole else 0.0


def tidy(sentence: str, most: int) -> bool:
    """Whether a sentence has at most `most` words and says none of them twice, little words aside."""
    found = words(sentence)
    counts = Counter(word for word in found if word not in REPEATABLE)
    return (
        0 < len(found) <= most and max(counts.values(), default=1) == 1 and max(Counter(found).values()) <= 3
    )
