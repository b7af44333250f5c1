"""Whether a row holds an evaluation item: Phi-4 Technical Report (arXiv 2412.08905), B.1, Algorithm 1.

A common run of n words that is not on the list of common ones: contaminated. Otherwise the share of common
7-grams, overlap(row, item) / min(7-grams of the row, 7-grams of the item), each counted once: contaminated at
one threshold, partly so above a lower one. An item too short for a 7-gram is looked for as a whole turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.prompts.eval_items import EvalItems, Item, Table
from posttrain.prompts.ngrams import Grams, Ints, Words, grams_of, placed, signs_of

Marks = NDArray[np.bool_]  # one for each gram of a table

CONTEXT = 60  # characters told on each side of a span
LONGEST = 600  # characters told of a span


@dataclass(frozen=True)
class Part:
    """One text of a row: `where` it stands in it, and its words."""

    where: str
    text: str
    words: Words


@dataclass(frozen=True)
class Span:
    """The longest run of words that a row and an item share. part: index of the row's text. row, item: of the
    first word in the text of each.
    """

    part: int
    row: int
    item: int
    words: int


@dataclass(frozen=True)
class Overlap:
    """What a row has in common with one evaluation set.

    verdict: "contaminated", or "partial": to be told, not to be acted on. by: "n-gram", "ratio" or "whole".
    item: the one that overlaps most; items: all for which the verdict holds. ratio: of 7-grams, in [0, 1];
    None where another rule decided.
    """

    group: int
    verdict: Literal["contaminated", "partial"]
    by: Literal["n-gram", "ratio", "whole"]
    item: int
    items: Ints
    span: Span
    ratio: float | None = None


@dataclass(frozen=True)
class Rules:
    """What is compared with what.

    contaminated, partial: thresholds of the ratio. common: which grams of items.long are no evidence.
    """

    items: EvalItems
    contaminated: float
    partial: float
    common: Marks

    @cached_property
    def sizes(self) -> Ints:
        """The n_ratio-grams of each item, each counted once, [items]."""
        return np.bincount(self.items.brief.item, minlength=len(self.items.items))

    @cached_property
    def wholes(self) -> dict[Words, list[int]]:
        """The items too short for an n_ratio-gram, by their words."""
        found: dict[Words, list[int]] = {}
        for i in np.flatnonzero(self.sizes == 0):
            if words := self.items.items[i].words:
                found.setdefault(words, []).append(int(i))
        return found


def overlaps(rules: Rules, parts: Sequence[Part]) -> list[Overlap]:
    """What a row has in common with each set, at most one an evaluation set; the sets in their order."""
    found: dict[int, Overlap] = {}
    for look in (_runs, _wholes, _ratios):
        for overlap in look(rules, parts):
            known = found.get(overlap.group)
            if known is None or (known.verdict == "partial" and overlap.verdict == "contaminated"):
                found[overlap.group] = overlap
    return [found[group] for group in sorted(found)]


def _runs(rules: Rules, parts: Sequence[Part]) -> Iterator[Overlap]:
    """Step 1: n-grams in common that are not common to all."""
    table = rules.items.long
    texts = [part.words for part in parts]
    grams = grams_of(texts, table.n)
    found = table.find(grams.hashes)
    hits = np.flatnonzero(found >= 0)
    hits = hits[~rules.common[found[hits]]]
    if not len(hits):
        return
    counts = _per_item(table, np.unique(found[hits]))
    for group, items in _by_set(rules.items, counts > 0):
        item = int(items[np.argmax(counts[items])])
        span = _longest(rules.items.items[item], item, table, grams, found, texts, rules.common)
        if span:
            yield Overlap(group, "contaminated", "n-gram", item, items, span)


def _wholes(rules: Rules, parts: Sequence[Part]) -> Iterator[Overlap]:
    """Items that are a turn of the row, word for word; 2 + 3 is not 2 - 3."""
    for i, part in enumerate(parts):
        same = np.array(rules.wholes.get(part.words, []), np.int64)
        if not len(same):
            continue
        signs = signs_of(part.text)
        same = same[[signs_of(rules.items.items[one].text) == signs for one in same]]
        for group in np.unique(rules.items.group[same]):
            mine = same[rules.items.group[same] == group]
            yield Overlap(
                int(group), "contaminated", "whole", int(mine[0]), mine, Span(i, 0, 0, len(part.words))
            )


def _ratios(rules: Rules, parts: Sequence[Part]) -> Iterator[Overlap]:
    """Steps 2 to 4: the share of 7-grams in common, of the item for which it is largest in each set."""
    table = rules.items.brief
    texts = [part.words for part in parts]
    grams = grams_of(texts, table.n)
    found = table.find(grams.hashes)
    there = np.unique(found[found >= 0])
    if not len(there):
        return
    own = len(np.unique(grams.hashes))
    ratio = _per_item(table, there) / np.maximum(1, np.minimum(own, rules.sizes))
    for group, items in _by_set(rules.items, ratio > rules.partial):
        item = int(items[np.argmax(ratio[items])])
        span = _longest(rules.items.items[item], item, table, grams, found, texts, None)
        if span is None:
            continue
        worst = float(ratio[item])
        if worst >= rules.contaminated:
            same = items[ratio[items] >= rules.contaminated]
            yield Overlap(group, "contaminated", "ratio", item, same, span, worst)
        else:
            yield Overlap(group, "partial", "ratio", item, items, span, worst)


def _per_item(table: Table, grams: Ints) -> Ints:
    """How many of the given grams each item has, [items]."""
    _, places = table.places(grams)
    return np.bincount(table.item[places], minlength=table.items)


def _by_set(items: EvalItems, wanted: Marks) -> Iterator[tuple[int, Ints]]:
    """The wanted items of each set that has any."""
    chosen = np.flatnonzero(wanted)
    groups = items.group[chosen]
    for group in np.unique(groups):
        yield int(group), chosen[groups == group]


def _longest(
    item: Item,
    index: int,
    table: Table,
    grams: Grams,
    found: Ints,
    texts: Sequence[Words],
    common: Marks | None,
) -> Span | None:
    """The longest run of words of the row that is in the item, letter for letter, over a gram that counts.

    None where the words differ: two grams then share a number, which no row should be blamed for.
    """
    best: Span | None = None
    seen: set[tuple[int, int]] = set()  # (text, word) of the row where a run that was gone over has a gram
    hits = np.flatnonzero(found >= 0)
    which, places = table.places(found[hits])
    mine = table.item[places] == index
    for hit, at in zip(hits[which[mine]], places[mine], strict=True):
        if common is not None and common[found[hit]]:
            continue
        part, first, start = int(grams.text[hit]), int(grams.place[hit]), int(table.place[at])
        a, b = texts[part], item.words
        if (part, first) in seen or a[first : first + table.n] != b[start : start + table.n]:
            continue
        low, high = 0, table.n
        while first + low > 0 and start + low > 0 and a[first + low - 1] == b[start + low - 1]:
            low -= 1
        while first + high < len(a) and start + high < len(b) and a[first + high] == b[start + high]:
            high += 1
        seen.update((part, word) for word in range(first, first + high - table.n + 1))
        if best is None or high - low > best.words:
            best = Span(part, first + low, start + low, high - low)
    return best


def evidence(rules: Rules, parts: Sequence[Part], overlap: Overlap) -> dict[str, Any]:
    """An overlap as people and files are told it: the span with what stands around it, and the item."""
    items, span = rules.items, overlap.span
    item = items.items[overlap.item]
    part = parts[span.part]
    told = {
        "verdict": overlap.verdict,
        "by": f"{items.n}-gram" if overlap.by == "n-gram" else f"{items.n_ratio}-gram ratio",
        "set": items.names[overlap.group],
        "item": item.id,
        "item_source": item.source,
        "items": len(np.unique(items.number[overlap.items])),
        "ratio": None if overlap.ratio is None else round(overlap.ratio, 4),
        "words": span.words,
        "where": part.where,
        **_excerpt(part.text, span.row, span.words),
        "item_text": _excerpt(item.text, span.item, span.words)["span"],
    }
    return told | ({"by": "whole turn"} if overlap.by == "whole" else {})


def _excerpt(text: str, first: int, words: int) -> dict[str, str]:
    shown = placed(text)
    start, end = shown.between(first, first + words - 1)
    span = shown.text[start:end]
    return {
        "before": shown.text[max(0, start - CONTEXT) : start],
        "span": span if len(span) <= LONGEST else f"{span[:LONGEST]}… (cut)",
        "after": shown.text[end : end + CONTEXT],
    }
