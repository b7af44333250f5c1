"""Evaluation items by their n-grams: what training rows are looked up in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from posttrain.common.errors import DataError
from posttrain.prompts.ngrams import Grams, Hashes, Ints, Words, grams_of, whole_hash, words_of
from posttrain.records import Document, Prompt, Row

_MOST_BITS = 26  # of places, a byte each: 64 MB
_PER_GRAM = 32  # places of the coarse table for each n-gram: about one lookup in so many is in vain


@dataclass(frozen=True)
class Item:
    """A turn of an evaluation item, which is compared by itself: a row may hold one question of several.

    group: index of its set. number: of the item among all, its turns share it. words: of its text.
    """

    group: int
    number: int
    id: str
    source: str
    text: str
    words: Words


def items_of(group: int, number: int, row: Row, n: int) -> list[Item]:
    """The user's turns of an evaluation prompt that have n words, later ones (MT-Bench's) included; where
    none has, the one with most words, the first of equals.

    Neither what a system prompt says nor earlier answers belong to the question: many items share them.
    """
    if isinstance(row, Document):
        texts = [row.text]
    else:
        prompt: Prompt = row if isinstance(row, Prompt) else row.prompt  # type: ignore[attr-defined]
        texts = [turn.text for turn in prompt.messages if turn.role == "user"]
        texts += _later(prompt)
    where = row.provenance
    made = [Item(group, number, where.id, where.source, text, words_of(text)) for text in texts]
    return [item for item in made if len(item.words) >= n] or [max(made, key=lambda item: len(item.words))]


def _later(prompt: Prompt) -> list[str]:
    try:
        found = json.loads(prompt.tags.get("next_turns", "[]"))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(turn, str) for turn in found):
        where = prompt.provenance
        raise DataError(f"{where.source or where.id}: tag 'next_turns': expected a JSON list of texts")
    return found


class Lookup:
    """Whether, and where, numbers stand in an ascending list without doubles, quickly where most do not."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        bits = min(_MOST_BITS, max(10, int(np.ceil(np.log2(max(1, len(hashes)) * _PER_GRAM)))))
        self._shift = np.uint64(64 - bits)
        self._there: NDArray[np.bool_] = np.zeros(1 << bits, bool)
        self._there[hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> Ints:
        """The index of each in the list, [G]; -1 where it is not there."""
        found = np.full(len(hashes), -1, np.int64)
        maybe = np.flatnonzero(self._there[hashes >> self._shift])
        if len(maybe):
            at = np.minimum(np.searchsorted(self.hashes, hashes[maybe]), len(self.hashes) - 1)
            found[maybe] = np.where(self.hashes[at] == hashes[maybe], at, -1)
        return found


class Table:
    """n-gram -> where it stands among the items; each item once, by the gram's first place in it.

    hashes: [U], ascending. starts: [U + 1], of each gram's places. item, place: [P]. items: their number.
    """

    def __init__(self, items: Sequence[Item], n: int) -> None:
        grams = grams_of([item.words for item in items], n)
        order = np.lexsort((grams.text, grams.hashes))
        hashes, item = grams.hashes[order], grams.text[order]
        new = np.ones(len(order), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (item[1:] != item[:-1])
        self.n, self.items = n, len(items)
        self.item: Ints = item[new]
        self.place: Ints = grams.place[order[new]]
        self.hashes: Hashes
        self.hashes, begin = np.unique(hashes[new], return_index=True)
        self.starts: Ints = np.append(begin, len(self.item))
        self.find = Lookup(self.hashes).find

    def places(self, grams: Ints) -> tuple[Ints, Ints]:
        """All places of the given grams: (which of the given ones, index into item and place)."""
        counts = self.starts[grams + 1] - self.starts[grams]
        which = np.repeat(np.arange(len(grams)), counts)
        ahead = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return which, self.starts[grams][which] + ahead

    @property
    def per_gram(self) -> Ints:
        """In how many turns of items each gram stands, [U]."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class EvalItems:
    """All evaluation sets together. names: of the sets. n, n_ratio: the lengths of n-grams."""

    names: tuple[str, ...]
    items: tuple[Item, ...]
    n: int
    n_ratio: int

    @cached_property
    def long(self) -> Table:
        return Table(self.items, self.n)

    @cached_property
    def brief(self) -> Table:
        return Table(self.items, self.n_ratio)

    @cached_property
    def group(self) -> Ints:
        """The set of each item."""
        return np.array([item.group for item in self.items], np.int64)

    @cached_property
    def number(self) -> Ints:
        """The evaluation item that each is a turn of."""
        return np.array([item.number for item in self.items], np.int64)

    @cached_property
    def keys(self) -> Lookup:
        """What a row must have one of to overlap with an item: n_ratio-grams, or a short text as a whole."""
        short = [item.words for item in self.items if 0 < len(item.words) < self.n_ratio]
        whole = np.fromiter(map(whole_hash, short), np.uint64, len(short))
        return Lookup(np.unique(np.concatenate([self.brief.hashes, whole])))

    def described(self) -> dict[str, dict[str, int]]:
        """For each set how many items it has, how many of them are compared as whole turns for want of words,
        and how many have no word at all.
        """
        told = {name: {"items": 0, "compared_whole": 0, "empty": 0} for name in self.names}
        for item in {item.number: item for item in self.items}.values():
            counts = told[self.names[item.group]]
            counts["items"] += 1
            counts["compared_whole"] += 0 < len(item.words) < self.n_ratio
            counts["empty"] += not item.words
        return told


def row_keys(texts: Sequence[Words], n: int) -> Grams:
    """As `EvalItems.keys`, of texts of rows: their n-grams, and of each text of fewer words its whole."""
    grams = grams_of(texts, n)
    short = [i for i, words in enumerate(texts) if 0 < len(words) < n]
    whole = np.fromiter((whole_hash(texts[i]) for i in short), np.uint64, len(short))
    return Grams(
        np.concatenate([grams.hashes, whole]),
        np.concatenate([grams.text, np.array(short, np.int64)]),
        np.concatenate([grams.place, np.zeros(len(short), np.int64)]),
    )


def gather(sets: Iterable[tuple[str, Iterable[Row]]], n: int, n_ratio: int) -> EvalItems:
    """Read every set whole."""
    names: list[str] = []
    items: list[Item] = []
    number = 0
    for group, (name, rows) in enumerate(sets):
        names.append(name)
        for row in rows:
            items += items_of(group, number, row, n_ratio)
            number += 1
    return EvalItems(tuple(names), tuple(items), n, n_ratio)
