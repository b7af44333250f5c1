"""Invented, pronounceable names. No name is handed out twice, whatever it is for."""

from __future__ import annotations

import random
from collections.abc import Sequence

ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("l", "n", "r", "s", "m", "k")

ENDINGS: dict[str, tuple[str, ...]] = {
    "country": ("ia", "ora", "una", "esh"),
    "capital": ("dil", "gard", "mouth", "polis"),
    "river": ("awe", "isse", "une", "olga"),
    "mountain": ("horn", "tor", "berg", "peak"),
    "person": ("a", "o", "in", "el"),
    "founder": ("ric", "wen", "mund", "gis"),
    "currency": ("ak", "ong", "et", "ul"),
}


class Names:
    """Draws names from `rng`; remembers what it gave, so that a name means one thing in the whole world."""

    def __init__(self, rng: random.Random, taken: Sequence[str] = ()) -> None:
        self.rng = rng
        self.taken = {name.lower() for name in taken}

    def draw(self, kind: str, n: int) -> tuple[str, ...]:
        """`n` new names of one `kind` (a key of ENDINGS)."""
        found: list[str] = []
        while len(found) < n:
            name = self._syllables() + self.rng.choice(ENDINGS[kind])
            if name.lower() not in self.taken:
                self.taken.add(name.lower())
                found.append(name)
        return tuple(found)

    def _syllables(self) -> str:
        first = self.rng.choice(ONSETS) + self.rng.choice(VOWELS)
        return (first + self.rng.choice(CODAS)).capitalize()
