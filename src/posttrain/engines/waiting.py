"""Who is written next: prompts wait, the longest first, until the cache has room for their samples."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from posttrain.engines.shapes import whole_rows, whole_tokens

Name = tuple[int, int]  # prompt, sample

# A wave enters once this share of the cache is free: many small ones would each cost a prefill and products
# of their own.
_ENTER = 1 / 4
# What a row costs a step, and what a wave of its own does, in tokens of a prompt that its samples attend to.
_ROW, _WAVE = 128, 512


class Waiting(Protocol):
    """Samples that have not begun."""

    def __bool__(self) -> bool: ...

    def admit(self, held: int) -> list[list[Name]]:
        """Which begin now, wave by wave, beside `held` tokens in the cache; none while there is no room."""
        ...

    def prompt_tokens(self, names: Sequence[Name]) -> int:
        """Tokens that a wave holds of its prompts."""
        ...


class SharedPrompts:
    """For a cache that holds a prompt once: its samples begin together where they have room, and with them
    those of all prompts that it begins with, which are held with it.

    families: samples that share a slot, those of the longest prompt first. lengths, limits: tokens of each
    prompt, and new ones it may have. holders: for each prompt, the one in whose slot it is held.
    batch_tokens: cells of the cache.
    """

    def __init__(
        self,
        families: Sequence[Sequence[Name]],
        lengths: Sequence[int],
        limits: Sequence[int],
        holders: Sequence[int],
        batch_tokens: int,
    ) -> None:
        self.lengths, self.limits, self.holders, self.batch_tokens = lengths, limits, holders, batch_tokens
        self._queue = deque(sorted(families, key=lambda family: (-lengths[family[0][0]], family[0])))

    def __bool__(self) -> bool:
        return bool(self._queue)

    def admit(self, held: int) -> list[list[Name]]:
        room = self.batch_tokens - held
        if held and room < self.batch_tokens * _ENTER:
            return []
        chosen: list[Sequence[Name]] = []
        while self._queue:
            family = self._queue[0]
            count = self._fitting(family, room, alone=not (held or chosen))
            if not count:
                break
            self._queue.popleft()
            chosen.append(family[:count])
            room -= self._cells(family[:count])
            if count < len(family):
                self._queue.appendleft(family[count:])
                break
        return alike(chosen, self.lengths)

    def prompt_tokens(self, names: Sequence[Name]) -> int:
        longest: dict[int, int] = {}
        for i, _ in names:
            longest[self.holders[i]] = max(self.lengths[i], longest.get(self.holders[i], 0))
        return sum(longest.values())

    def _cells(self, family: Sequence[Name]) -> int:
        return self.lengths[family[0][0]] + sum(self.limits[i] for i, _ in family)

    def _fitting(self, family: Sequence[Name], room: int, alone: bool) -> int:
        """How many of a family's samples may begin: all or none, but for those that never fit together."""
        whole = self._cells(family)
        if whole <= room:
            return len(family)
        if whole <= self.batch_tokens:
            return 0
        room -= self.lengths[family[0][0]]
        ends = itertools.accumulate(self.limits[i] for i, _ in family)
        return max(sum(end <= room for end in ends), int(alone))


def families_of(lengths: Sequence[int], holders: Sequence[int], samples: int) -> list[list[Name]]:
    """The samples that each slot is for, those of its longest prompt first."""
    families: dict[int, list[Name]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        families.setdefault(holders[i], []).extend((i, j) for j in range(samples))
    return list(families.values())


def dealt(families: Sequence[Sequence[Name]], groups: int) -> list[list[Sequence[Name]]]:
    """Families in `groups` groups of about as many samples each; one of more than a group's share is cut."""
    share = max(1, -(-sum(map(len, families)) // groups))
    pieces = [family[a : a + share] for family in families for a in range(0, len(family), share)]
    hands: list[list[Sequence[Name]]] = [[] for _ in range(groups)]
    for piece in sorted(pieces, key=len, reverse=True):
        min(hands, key=lambda hand: sum(map(len, hand))).append(piece)
    return [hand for hand in hands if hand]


def alike(families: Sequence[Sequence[Name]], lengths: Sequence[int]) -> list[list[Name]]:
    """Cut samples into waves whose slots are of like length, for a wave's slots are all as wide as its
    longest: the cheapest cut, by dynamic programming over widths.

    families: samples that share a slot, which has room for the first one's prompt.
    """
    by_width: dict[int, list[Sequence[Name]]] = {}
    for family in sorted(families, key=lambda family: -lengths[family[0][0]]):
        by_width.setdefault(whole_tokens(lengths[family[0][0]]), []).append(family)
    widths = list(by_width)  # falling
    best, cut = [0.0], [0]  # of the first k widths
    for k in range(1, len(widths) + 1):
        costs = []
        for first in range(k):
            wave = [family for width in widths[first:k] for family in by_width[width]]
            slots, rows = whole_rows(len(wave)), whole_rows(sum(map(len, wave)))
            costs.append(best[first] + slots * widths[first] + _ROW * rows + _WAVE)
        best.append(min(costs))
        cut.append(costs.index(best[-1]))
    waves: list[list[Name]] = []
    k = len(widths)
    while k:
        families = [family for width in widths[cut[k] : k] for family in by_width[width]]
        waves.append([name for family in families for name in family])
        k = cut[k]
    return waves[::-1]


class PaddedBatches:
    """For a cache that repeats the prompt in each row and pads it: one batch after the other.

    even: only prompts of one length share a batch.
    """

    def __init__(
        self, lengths: Sequence[int], limits: Sequence[int], samples: int, batch_tokens: int, even: bool
    ) -> None:
        self.lengths = lengths
        self._batches = deque(_batches(lengths, limits, samples, batch_tokens, even))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def admit(self, held: int) -> list[list[Name]]:
        return [] if held else [self._batches.popleft()]

    def prompt_tokens(self, names: Sequence[Name]) -> int:
        return sum(self.lengths[i] for i, _ in names)


def _batches(
    lengths: Sequence[int], limits: Sequence[int], n: int, batch_tokens: int, even: bool
) -> Iterator[list[Name]]:
    """Rows that run together; the longest first, so that too large a batch fails at once."""
    batch: list[Name] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if even and batch and lengths[batch[-1][0]] != lengths[i]:
            yield batch
            batch, longest = [], 0
        for j in range(n):
            longest = max(longest, lengths[i] + limits[i])
            if batch and (len(batch) + 1) * longest > batch_tokens:
                yield batch
                batch, longest = [], lengths[i] + limits[i]
            batch.append((i, j))
    if batch:
        yield batch
