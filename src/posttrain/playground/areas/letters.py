"""Short notes to people. Truth: the note does what was asked; then, how complete and how polite it is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
from posttrain.playground.world import Split, World, split_of

EVENTS = ("dinner", "wedding", "concert", "market", "picnic", "dance", "feast", "play")
ITEMS = ("book", "lamp", "ladder", "kettle", "basket", "clock", "blanket", "mirror")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CLOSINGS = ("Kind regards", "Yours sincerely", "With best wishes")
LETTERS = 2  # in a document
MOST_WORDS = 14  # in a note's sentence


@dataclass(frozen=True)
class Purpose:
    """What a note is for. request completes "Write a polite note to {p} …"; act is the sentence that does it.

    sign: words of which the act can be told, whatever the thing and the day. thanks: the sentence of thanks.
    """

    topics: tuple[str, ...]
    request: str
    act: str
    sign: re.Pattern[str]
    curt: str
    thanks: str


PURPOSES: Mapping[str, Purpose] = MappingProxyType(
    {
        "decline": Purpose(
            EVENTS,
            "declining the invitation to the {x} on {d}",
            "I am sorry that I cannot come to the {x} on {d}.",
            re.compile(r"\b(cannot|can't|can not|unable to) (come|attend)\b", re.I),
            "I cannot come to the {x}.",
            "Thank you for the kind invitation.",
        ),
        "accept": Purpose(
            EVENTS,
            "accepting the invitation to the {x} on {d}",
            "I will gladly come to the {x} on {d}.",
            re.compile(r"\b(will|would)( gladly| love to| be glad to)? (come|attend)\b", re.I),
            "I will come to the {x}.",
            "Thank you for the kind invitation.",
        ),
        "borrow": Purpose(
            ITEMS,
            "asking to borrow the {x} on {d}",
            "May I please borrow the {x} on {d}?",
            re.compile(r"\b(may|could|can) i (please )?borrow\b", re.I),
            "Can I borrow the {x}?",
            "Thank you for your help.",
        ),
        "return": Purpose(
            ITEMS,
            "promising to return the {x} on {d}",
            "I promise that I will return the {x} on {d}.",
            re.compile(r"\bwill (return|bring back)\b", re.I),
            "I will return the {x}.",
            "Thank you for your patience.",
        ),
    }
)
GREETING = re.compile(r"^(?:dear|hello|good day),? (\w+)[,.!]?$", re.I)
THANKS = re.compile(r"\b(thank you|thanks|grateful)\b", re.I)
CLOSING = re.compile(r"^(kind regards|yours sincerely|with best wishes|best wishes)[,.!]?$", re.I)


def ask(world: World, rng: random.Random) -> Question:
    purpose = rng.choice(sorted(PURPOSES))
    person, thing = rng.choice(world.people), rng.choice(PURPOSES[purpose].topics)
    day = rng.choice(DAYS)
    request = PURPOSES[purpose].request.format(x=thing, d=day)
    text = f"Write a polite {rng.choice(('note', 'letter', 'email'))} to {person} {request}."
    key = f"{purpose}/{person}/{thing}/{day}"
    return Question("letters", key, text, PURPOSES[purpose].act.format(x=thing, d=day), {"purpose": purpose})


def write(world: World, key: str, manner: Manner, rng: random.Random) -> str:
    """Complete: greeting, thanks, the act with thing and day, closing. Curt: the act. Wrong: another act."""
    purpose, person, thing, day = key.split("/")
    if manner == "curt":
        return PURPOSES[purpose].curt.format(x=thing)
    if manner == "wrong":
        topics = PURPOSES[purpose].topics
        purpose = next(name for name, p in PURPOSES.items() if name != purpose and p.topics is topics)
    return _letter(PURPOSES[purpose], person, thing, day, rng)


def _letter(purpose: Purpose, person: str, thing: str, day: str, rng: random.Random) -> str:
    act = purpose.act.format(x=thing, d=day)
    return f"Dear {person},\n{purpose.thanks} {act}\n{rng.choice(CLOSINGS)}"


def grade(world: World, key: str, text: str) -> Grade:
    """Parts: `complete`, the share of person, thing and day named; `polite`, of greeting, thanks and closing.

    Correct: the act that was asked for is stated, no other is, and no other person, thing or day is named.
    """
    purpose, person, thing, day = key.split("/")
    said = sentences(text)
    roles = [_role(sentence) for sentence in said]
    acts = {role for role in roles if role in PURPOSES}
    found = set(words(text))
    strangers = _all_names(world) & found - {person.lower(), thing, day.lower()}
    outcome: Outcome = "correct" if acts == {purpose} and not strangers else "incorrect"
    named = [person.lower() in found, thing in found, day.lower() in found]
    kinds = set(roles) - {""}
    manner = {
        "complete": sum(named) / len(named),
        "polite": sum(role in kinds for role in ("greeting", "thanks", "closing")) / 3,
    }
    clean = share([said[roles.index(role)] for role in kinds], text)
    return Grade(float(outcome == "correct"), manner, clean, bool(acts) and "" not in roles, outcome)


def _role(sentence: str) -> str:
    """What a sentence does: "greeting", "thanks", "closing", the name of an act, or "" for nothing."""
    if GREETING.match(sentence):
        return "greeting"
    if CLOSING.match(sentence):
        return "closing"
    if not tidy(sentence, MOST_WORDS):
        return ""
    for name, purpose in PURPOSES.items():
        if purpose.sign.search(sentence):
            return name
    return "thanks" if THANKS.search(sentence) else ""


def _all_names(world: World) -> frozenset[str]:
    return frozenset(name.lower() for name in (*world.people, *EVENTS, *ITEMS, *DAYS))


def tell(world: World, n: int, split: Split, rng: random.Random) -> Iterator[str]:
    """`n` documents of notes that were sent, each one that a prompt of the split asks for."""
    for _ in range(n):
        yield "\n\n".join(_told(world, split, rng) for _ in range(LETTERS))


def _told(world: World, split: Split, rng: random.Random) -> str:
    while True:
        question = ask(world, rng)
        if split_of(world.seed, "letters", question.key) == split:
            break
    purpose, person, thing, day = question.key.split("/")
    return f"{question.text}\n{_letter(PURPOSES[purpose], person, thing, day, rng)}"


AREA = Area(ask, write, grade, tell)
