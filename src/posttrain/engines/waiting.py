"""Who is written next: prompts wait, the longest first, until the cache has room for their samples."""

from __future__ import annotations

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


class SharedPrompts:
    """For a cache that holds a prompt once: its samples begin together where they have room.

    lengths, limits: tokens of each prompt, and new ones it may have. batch_tokens: cells of the cache.
    """

    def __init__(
        self, lengths: Sequence[int], limits: Sequence[int], samples: int, batch_tokens: int
    ) -> None:
        self.lengths, self.limits, self.samples, self.batch_tokens = lengths, limits, samples, batch_tokens
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        self._queue = deque((i, 0) for i in order)  # prompt, its first sample that has not begun

    def __bool__(self) -> bool:
        return bool(self._queue)

    def admit(self, held: int) -> list[list[Name]]:
        room = self.batch_tokens - held
        if held and room < self.batch_tokens * _ENTER:
            return []
        chosen: list[Name] = []
        while self._queue:
            i, first = self._queue[0]
            count = self._fitting(i, self.samples - first, room, alone=not (held or chosen))
            if not count:
                break
            self._queue.popleft()
            chosen += [(i, j) for j in range(first, first + count)]
            room -= self.lengths[i] + count * self.limits[i]
            if first + count < self.samples:
                self._queue.appendleft((i, first + count))
                break
        return alike(chosen, self.lengths)

    def _fitting(self, i: int, wanted: int, room: int, alone: bool) -> int:
        """How many of a prompt's samples may begin: all or none, but for those that never fit together."""
        if self.lengths[i] + wanted * self.limits[i] <= room:
            return wanted
        return min(wanted, max((room - self.lengths[i]) // self.limits[i], 1)) if alone else 0


def alike(names: Sequence[Name], lengths: Sequence[int]) -> list[list[Name]]:
    """Cut samples into waves whose prompts are of like length, for a wave's slots are all as wide as its
    longest prompt: the cheapest cut, by dynamic programming over widths.
    """
    by_width: dict[int, list[Name]] = {}
    for name in sorted(names, key=lambda name: -lengths[name[0]]):
        by_width.setdefault(whole_tokens(lengths[name[0]]), []).append(name)
    widths = list(by_width)  # falling
    best, cut = [0.0], [0]  # of the first k widths
    for k in range(1, len(widths) + 1):
        costs = []
        for first in range(k):
            wave = [name for width in widths[first:k] for name in by_width[width]]
            slots = whole_rows(len({i for i, _ in wave}))
            costs.append(best[first] + slots * widths[first] + _ROW * whole_rows(len(wave)) + _WAVE)
        best.append(min(costs))
        cut.append(costs.index(best[-1]))
    waves: list[list[Name]] = []
    k = len(widths)
    while k:
        waves.append([name for width in widths[cut[k] : k] for name in by_width[width]])
        k = cut[k]
    return waves[::-1]


class PaddedBatches:
    """For a cache that repeats the prompt in each row and pads it: one batch after the other.

    even: only prompts of one length share a batch.
    """

    def __init__(
        self, lengths: Sequence[int], limits: Sequence[int], samples: int, batch_tokens: int, even: bool
    ) -> None:
        self._batches = deque(_batches(lengths, limits, samples, batch_tokens, even))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def admit(self, held: int) -> list[list[Name]]:
        return [] if held else [self._batches.popleft()]


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
