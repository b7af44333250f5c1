"""Who is written next: prompts wait, the longest first, until the cache has room for their samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

Name = tuple[int, int]  # prompt, sample

# A wave enters once this share of the cache is free: many small ones would each cost a prefill and products
# of their own.
_ENTER = 1 / 4


class Waiting(Protocol):
    """Samples that have not begun."""

    def __bool__(self) -> bool: ...

    def admit(self, held: int) -> list[Name]:
        """Which begin now, beside `held` tokens in the cache; none where there is no room yet."""
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

    def admit(self, held: int) -> list[Name]:
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
        return chosen

    def _fitting(self, i: int, wanted: int, room: int, alone: bool) -> int:
        """How many of a prompt's samples may begin: all or none, but for those that never fit together."""
        if self.lengths[i] + wanted * self.limits[i] <= room:
            return wanted
        return min(wanted, max((room - self.lengths[i]) // self.limits[i], 1)) if alone else 0


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

    def admit(self, held: int) -> list[Name]:
        return [] if held else self._batches.popleft()


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
