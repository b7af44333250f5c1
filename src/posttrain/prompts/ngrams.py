"""Words of texts and their n-grams as 64-bit numbers: what decontamination compares.

A word is a run of letters, marks and digits: case, punctuation and white space do not count, numbers do.
Unicode is compared in the form NFKC, case-folded; apostrophes and invisible characters inside a word are left
out ("don't" = "dont"); in scripts without spaces (Chinese, Japanese, Thai, …) every character is a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

VERSION = 1  # of what a word is and of the numbers: kept indexes of another version are not read

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Words = tuple[bytes, ...]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}\p{{Cf}}'’]--[{_UNSPACED}]]+", regex.VERSION1
)
_WITHIN = regex.compile(r"[\p{Cf}'’]+")
_SIGN = regex.compile(r"(?<=[\d)]\s*)[-+−*/×÷=<>^%](?=\s*[\d(])")
# What keeps most English texts from being ASCII, in ASCII that splits words as these do.
_TYPOGRAPHY = (("’", "'"), ("“", " "), ("”", " "), ("‘", " "), ("–", " "), ("—", " "))
_ASCII = bytes(ord(chr(b).lower()) if chr(b).isalnum() and b < 128 else 0x20 for b in range(256))
_MANY = 1 << 20  # words of which the number is remembered
# Odd, and one less than it is twice an odd number, so that words in another order rarely meet in one number.
_BASE = np.uint64(0x9E3779B97F4A7C13)


class _Numbers(dict[bytes, int]):
    """word -> 64 bits of it; the most words are asked for again and again."""

    def __missing__(self, word: bytes) -> int:
        number = xxhash.xxh3_64_intdigest(word)
        if len(self) < _MANY:
            self[word] = number
        return number


_NUMBERS = _Numbers()


def words_of(text: str) -> Words:
    """The words of a text, as UTF-8."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for sign, plain in _TYPOGRAPHY:
            text = text.replace(sign, plain)
    if text.isascii():
        return tuple(text.encode().translate(_ASCII, b"'").split())
    return tuple(filter(None, map(_plain, _WORD.findall(text))))


@dataclass(frozen=True)
class Placed:
    """The words of a text and where they stand: `text` is the form NFKC of it, `spans` in its characters."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def between(self, first: int, last: int) -> tuple[int, int]:
        """The characters from word `first` to word `last`, both included."""
        return self.spans[first][0], self.spans[last][1]


def placed(text: str) -> Placed:
    """Where the words that `words_of` finds stand."""
    text = unicodedata.normalize("NFKC", text)
    return Placed(text, tuple(match.span() for match in _WORD.finditer(text) if _plain(match.group())))


def _plain(word: str) -> bytes:
    return unicodedata.normalize("NFKC", _WITHIN.sub("", word).casefold()).encode()


@dataclass(frozen=True)
class Grams:
    """The n-grams of several texts, in order; none reaches from one text into the next.

    hashes: [G]. text: [G], the index of the text. place: [G], of the gram's first word in it.
    """

    hashes: Hashes
    text: Ints
    place: Ints


def grams_of(texts: Sequence[Sequence[bytes]], n: int) -> Grams:
    """Every n-gram of the texts, given as words; a text of fewer than n words has none."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    total = int(lengths.sum())
    if total < n:
        return Grams(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
    numbers = np.fromiter(map(_NUMBERS.__getitem__, chain.from_iterable(texts)), np.uint64, total)
    owner = np.repeat(np.arange(len(texts)), lengths)
    within = owner[: total - n + 1] == owner[n - 1 :]
    start = np.flatnonzero(within)
    text = owner[start]
    return Grams(_rolled(numbers, n)[start], text, start - (np.cumsum(lengths) - lengths)[text])


def signs_of(text: str) -> tuple[str, ...]:
    """The signs between numbers, which words leave out."""
    return tuple(_SIGN.findall(unicodedata.normalize("NFKC", text)))


def whole_hash(words: Sequence[bytes]) -> int:
    """A number for a text as a whole, however short; no n-gram's."""
    return xxhash.xxh3_64_intdigest(b" ".join(words), seed=1)


def _rolled(numbers: Hashes, n: int) -> Hashes:
    """A polynomial of each n numbers that follow one another, modulo 2**64."""
    end = len(numbers) - n + 1
    rolled = numbers[:end].copy()
    for i in range(1, n):
        rolled *= _BASE
        rolled += numbers[i : end + i]
    return rolled
