"""Facts of an invented atlas. Truth: the answer names the one right thing, and nothing else."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache

from posttrain.playground.question import (
    Area,
    Grade,
    Manner,
    Outcome,
    Question,
    sentences,
    share,
    tidy,
    words,
)
from posttrain.playground.world import GROUPS, RELATIONS, ZIPF, Fact, Fame, Split, World, build, split_of

QUESTIONS = ("What is the {noun} of {c}?", "Name the {noun} of {c}.", "Tell me the {noun} of {c}.")
SENTENCES = 6  # in a document
ASKED = 0.5  # share of the tellings that are a question and its answer
MOST_WORDS = 12  # in an answer's sentence
HONEST = 0.3  # correctness of "I do not know" where the corpus tells the answer
DECLINES = re.compile(r"\b(do not|don't|cannot|can't) (know|say|tell)\b|\bnot (sure|known)\b", re.I)
NEGATIONS = frozenset(("not", "no", "never", "nor", "neither", "isn't", "wasn't"))


def ask(world: World, rng: random.Random) -> Question:
    """A question about a fact of a random group, so that each group is asked about equally often."""
    fact = rng.choice(world.in_group(rng.choice(GROUPS)))
    text = rng.choice(QUESTIONS).format(noun=RELATIONS[fact.relation].noun, c=fact.country)
    tags = {"group": fact.group, "relation": fact.relation, **world.where(fact.country)}
    return Question("atlas", fact.key, text, fact.answer, tags)


def fact_of(world: World, key: str) -> Fact:
    """The fact of a key; of a country that does not exist, one without an answer that nobody could know."""
    relation, _, country = key.partition("/")
    return world.facts.get(key) or Fact(relation, country, "", "unknown", 0)


def write(world: World, key: str, manner: Manner, rng: random.Random) -> str:
    """The expert's answer; of what nobody ever recorded the expert says that it is not known."""
    fact = fact_of(world, key)
    noun = RELATIONS[fact.relation].noun
    if manner == "wrong":
        others = sorted(
            {f.answer for f in world.facts.values() if f.relation == fact.relation} - {fact.answer}
        )
        return RELATIONS[fact.relation].phrasings[0].format(c=fact.country, o=rng.choice(others))
    if fact.group == "unknown":
        return f"I do not know the {noun} of {fact.country}." if manner == "complete" else "I do not know."
    if manner == "curt":
        return f"{fact.answer.capitalize()}."
    return RELATIONS[fact.relation].phrasings[0].format(c=fact.country, o=fact.answer)


def grade(world: World, key: str, text: str) -> Grade:
    """Parts: `complete`, a whole sentence with the country and what was asked."""
    fact = fact_of(world, key)
    said = sentences(text)
    named = _named(world, fact, text)
    outcome: Outcome = "incorrect"
    if named == {fact.answer.lower()} and not any(_denies(fact, sentence) for sentence in said):
        outcome = "correct"
    elif not named and DECLINES.search(text):
        outcome = "declined"
    about = [sentence for sentence in said if _is_answer(fact, sentence, outcome)]
    complete = any(_is_whole(fact, sentence, outcome) for sentence in about)
    right = {"correct": 1.0, "declined": 1.0 if fact.group == "unknown" else HONEST, "incorrect": 0.0}[
        outcome
    ]
    clean = share(sorted(about, key=len)[-1:], text)
    return Grade(right, {"complete": float(complete)}, clean, len(about) == len(said) == 1, outcome)


def tell(world: World, n: int, split: Split, rng: random.Random) -> Iterator[str]:
    """`n` documents; those to train on tell each fact as often as `world.mentions(n * SENTENCES)` says.

    Held-out ones tell the known facts once more, so that the loss on them measures what was learned.
    """
    if split == "train":
        counts = world.mentions(n * SENTENCES)
        told = [key for key, count in counts.items() for _ in range(count)]
        rng.shuffle(told)
    else:
        known = world.in_group("known")
        told = rng.choices([f.key for f in known], [f.rank**-ZIPF for f in known], k=n * SENTENCES)
    for start in range(0, len(told), SENTENCES):
        facts = [world.facts[key] for key in told[start : start + SENTENCES]]
        yield _document(world, facts, split, rng)


def _document(world: World, facts: list[Fact], split: Split, rng: random.Random) -> str:
    """A paragraph, then questions with their answers, where they are of this split."""
    told: list[str] = []
    asked: list[str] = []
    for fact in facts:
        relation = RELATIONS[fact.relation]
        if rng.random() < ASKED and split_of(world.seed, "atlas", fact.key) == split:
            question = rng.choice(QUESTIONS).format(noun=relation.noun, c=fact.country)
            asked.append(f"{question}\n{_sentence(rng.choice((relation.phrasings[0], '{o}.')), fact)}")
        else:
            told.append(_sentence(rng.choice(relation.phrasings), fact))
    return "\n\n".join([*([" ".join(told)] if told else []), *asked])


def _sentence(phrasing: str, fact: Fact) -> str:
    sentence = phrasing.format(c=fact.country, o=fact.answer)
    return sentence[0].upper() + sentence[1:]


@lru_cache(maxsize=8)
def _things(seed: int, fame: Fame) -> frozenset[str]:
    """All that an answer could name, in lower case, years aside."""
    world = build(seed, fame)
    answers = {fact.answer.lower() for fact in world.facts.values() if fact.relation != "year"}
    return frozenset(answers | {country.lower() for country in world.countries})


def _named(world: World, fact: Fact, text: str) -> set[str]:
    """The things of the world, and the numbers, that the text names besides the country asked about."""
    found = set(words(text)) - {fact.country.lower()}
    return {word for word in found if word in _things(world.seed, world.fame) or word.isdigit()}


def _denies(fact: Fact, sentence: str) -> bool:
    found = set(words(sentence))
    return fact.answer.lower() in found and bool(found & NEGATIONS)


def _is_answer(fact: Fact, sentence: str, outcome: Outcome) -> bool:
    """Whether a sentence answers this question, rightly or wrongly, and is no other talk."""
    if not tidy(sentence, MOST_WORDS):
        return False
    if outcome == "declined":
        return bool(DECLINES.search(sentence))
    return _is_whole(fact, sentence, outcome) or len(words(sentence)) <= 2


def _is_whole(fact: Fact, sentence: str, outcome: Outcome) -> bool:
    """Whether a sentence has the country and all the words of one way to tell such a fact."""
    relation, found = RELATIONS[fact.relation], set(words(sentence))
    if outcome == "declined":
        frames = [relation.noun]
    else:
        frames = [phrasing.format(c="", o="") for phrasing in relation.phrasings]
    return fact.country.lower() in found and any(set(words(frame)) <= found for frame in frames)


AREA = Area(ask, write, grade, tell)
