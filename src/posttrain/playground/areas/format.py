"""Instructions whose form can be checked. Truth: what is named is right, each rule holds or does not."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from posttrain.playground.question import Area, Grade, Manner, Outcome, Question, sentences, tidy, words
from posttrain.playground.world import Split, World, split_of

THINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "colours": ("red", "blue", "green", "yellow", "white", "black", "brown", "purple"),
        "fruits": ("apple", "pear", "plum", "cherry", "lemon", "peach", "grape", "melon"),
        "tools": ("hammer", "saw", "axe", "spade", "rake", "chisel", "drill", "file"),
        "birds": ("robin", "owl", "crow", "goose", "duck", "gull", "finch", "dove"),
        "trees": ("oak", "pine", "birch", "ash", "elm", "beech", "willow", "maple"),
    }
)
NUMBERS = {"2": "two", "3": "three", "4": "four"}
LAYOUTS = {
    "commas": "separated by commas",
    "dashes": "as a list with dashes",
    "numbers": "as a numbered list",
    "json": "as a JSON list",
}
CASES = {"plain": "", "capitals": " in capitals"}
LENGTHS = {"4": "four", "5": "five", "6": "six", "7": "seven"}
SENTENCES = {
    "4": "The {x} is {a}.",
    "5": "The {x} is very {a}.",
    "6": "I think the {x} is {a}.",
    "7": "I think the {x} is very {a}.",
}
_KNOWN = frozenset(thing for things in THINGS.values() for thing in things)
ADJECTIVES = ("old", "small", "fine", "big", "new", "good")
OPENERS = ("Certainly", "Gladly", "Sure")
LISTS = 4  # in a document
SIGNS = 4  # brackets, quotes, dashes, commas, digits that one thing of a list may bring with it


def ask(world: World, rng: random.Random) -> Question:
    """A list of things in a layout, a sentence of so many words, or an answer that begins with a word."""
    kind = rng.choice(("list", "list", "words", "begin"))
    category = rng.choice(sorted(THINGS))
    if kind == "words":
        key = f"words/{rng.choice(THINGS[category])}/{rng.choice(sorted(LENGTHS))}"
    elif kind == "begin":
        key = f"begin/{category}/{rng.choice(sorted(NUMBERS))}/{rng.choice(OPENERS)}"
    else:
        parts = (rng.choice(sorted(NUMBERS)), rng.choice(sorted(LAYOUTS)), rng.choice(sorted(CASES)))
        key = "/".join(("list", category, *parts))
    return Question("format", key, _words_of(key, rng), _example(key), {"rule": kind})


def _words_of(key: str, rng: random.Random) -> str:
    kind, *spec = key.split("/")
    if kind == "words":
        verb = rng.choice(("Write", "Give me"))
        return f"{verb} a sentence of exactly {LENGTHS[spec[1]]} words about the {spec[0]}."
    verb = rng.choice(("Name", "Give me"))
    if kind == "begin":
        return f"{verb} {NUMBERS[spec[1]]} {spec[0]}. Begin your answer with the word {spec[2]}."
    return f"{verb} {NUMBERS[spec[1]]} {spec[0]}{CASES[spec[3]]}, {LAYOUTS[spec[2]]}."


def _example(key: str) -> str:
    return _write(key, "complete", random.Random(0))


def write(world: World, key: str, manner: Manner, rng: random.Random) -> str:
    """Complete: every rule holds. Curt: one right thing, no rule. Wrong: other things in the right form."""
    return _write(key, manner, rng)


def _write(key: str, manner: Manner, rng: random.Random) -> str:
    kind, *spec = key.split("/")
    if kind == "words":
        return _sentence(spec[0], spec[1], manner, rng)
    category = rng.choice(sorted(set(THINGS) - {spec[0]})) if manner == "wrong" else spec[0]
    items = rng.sample(THINGS[category], int(spec[1]))
    if manner == "curt":
        return f"{items[0].capitalize()}."
    if kind == "begin":
        return f"{spec[2]}: {', '.join(items)}."
    return layout(items, spec[2], spec[3])


def _sentence(thing: str, length: str, manner: Manner, rng: random.Random) -> str:
    if manner == "wrong":
        thing = rng.choice(sorted(_KNOWN - {thing}))
    if manner == "curt":
        return f"{thing.capitalize()}."
    return SENTENCES[length].format(x=thing, a=rng.choice(ADJECTIVES))


def layout(items: list[str], how: str, case: str) -> str:
    items = [item.upper() for item in items] if case == "capitals" else items
    if how == "commas":
        return ", ".join(items) + "."
    if how == "dashes":
        return "\n".join(f"- {item}" for item in items)
    if how == "numbers":
        return "\n".join(f"{i}. {item}" for i, item in enumerate(items, start=1))
    return json.dumps(items)


def grade(world: World, key: str, text: str) -> Grade:
    """Parts: `format`, the share of the rules that hold. Correct: all that is named is of the kind asked."""
    kind, *spec = key.split("/")
    rules = checks(key, text)
    manner = {"format": sum(rules.values()) / len(rules)}
    if kind == "words":
        right = spec[0] in words(text)
        clean = tidy(text, 2 * int(spec[1])) * _few_signs(text, 1)
        answered = len(sentences(text)) == 1 and clean == 1
    else:
        said = _said(text, spec[2] if kind == "begin" else "")
        named = list(dict.fromkeys(word for word in said if word in _KNOWN))
        right = bool(named) and set(named) <= set(THINGS[spec[0]])
        clean = _clean(text, named[: int(spec[1])], len(said))
        answered = bool(said) and set(named) == set(said)
    outcome: Outcome = "correct" if right else "incorrect"
    return Grade(float(right), manner, clean, answered, outcome)


def _clean(text: str, named: list[str], said: int) -> float:
    """The share of the words that name a thing anew, diluted by signs that no layout needs."""
    return len(named) / said * _few_signs(text, len(named)) if said else 0.0


def _few_signs(text: str, things: int) -> float:
    """1 up to SIGNS characters a thing that are neither letter nor white space; less where there are more."""
    signs = len(re.findall(r"[^\w\s]|[\d_]", text))
    return min(1.0, SIGNS * things / max(signs, 1))


def checks(key: str, text: str) -> dict[str, bool]:
    """Each rule of the instruction, by name, and whether the text obeys it to the letter."""
    kind, *spec = key.split("/")
    text = text.strip()
    if kind == "words":
        sentence = bool(re.fullmatch(r"[A-Z][^.!?\n]*[.!?]", text))
        return {"count": sentence and len(words(text)) == int(spec[1]), "sentence": sentence}
    named = [word for word in _said(text, spec[2] if kind == "begin" else "") if word in _KNOWN]
    count = len(named) == int(spec[1]) == len(set(named))
    if kind == "begin":
        return {"count": count, "begin": bool(re.match(rf"{spec[2]}\b", text))}
    case = bool(named) and text.isupper() == (spec[3] == "capitals")
    return {"count": count, "layout": _laid_out(text, spec[2]), "case": case}


def _laid_out(text: str, how: str) -> bool:
    lines = text.splitlines()
    if how == "dashes":
        return all(re.fullmatch(r"- \w+", line) for line in lines)
    if how == "numbers":
        return all(re.fullmatch(rf"{i}\. \w+", line) for i, line in enumerate(lines, start=1))
    if how == "commas":
        return bool(re.fullmatch(r"\w+(, \w+)+\.?", text))
    try:
        parsed = json.loads(text)
    except ValueError:
        return False
    return isinstance(parsed, list) and all(isinstance(item, str) for item in parsed)


def _said(text: str, opener: str) -> list[str]:
    """The words of a text without list numbers, "and", and the opening word that was asked for."""
    body = re.sub(rf"^{opener}\b", "", text.strip()) if opener else text
    return [word for word in words(body) if not word.isdigit() and word != "and"]


def tell(world: World, n: int, split: Split, rng: random.Random) -> Iterator[str]:
    """`n` documents of lists and sentences, each in a form that the split's instructions ask for."""
    for _ in range(n):
        yield "\n\n".join(_told(world, split, rng) for _ in range(LISTS))


def _told(world: World, split: Split, rng: random.Random) -> str:
    while True:
        question = ask(world, rng)
        if split_of(world.seed, "format", question.key) == split:
            break
    return f"{question.text}\n{_write(question.key, 'complete', rng)}"


AREA = Area(ask, write, grade, tell)
