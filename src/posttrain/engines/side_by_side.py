"""Rows in groups that are sampled at the same time, each group with cores of its own.

On a few cores that is faster than all cores in every product: a step of decoding is hundreds of small
operations, and most are too small to be split (docs/dev-log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch

from posttrain.models.rope import set_by_longest

if TYPE_CHECKING:
    from posttrain.common.progress import Bar

T = TypeVar("T")

# Rows of a group: each group reads all weights in every step, and of fewer rows that is what costs.
_ROWS = 32


def groups(rows: int, hf: Any) -> int:
    """In how many groups to sample so many rows of a Hugging Face model."""
    if hf.device.type != "cpu" or set_by_longest(hf):
        return 1
    return max(1, min(torch.get_num_threads(), rows // _ROWS))


def side_by_side(works: Sequence[Callable[[Event], T]]) -> list[T]:
    """What each of `works` returns, in order; torch's threads are shared out among them.

    Each gets an event that is set once another has failed, or whoever waits was interrupted: then what it
    returns is not wanted any more.
    """
    over = Event()
    if len(works) < 2:
        return [work(over) for work in works]
    threads = torch.get_num_threads()

    def alone(number: int) -> T:
        torch.set_num_threads(threads // len(works) + (number < threads % len(works)))
        try:
            with torch.inference_mode():
                return works[number](over)
        except BaseException:
            over.set()
            raise

    try:
        with ThreadPoolExecutor(len(works)) as pool:
            under_way = [pool.submit(alone, number) for number in range(len(works))]
            try:
                return [each.result() for each in under_way]
            finally:
                over.set()
    finally:
        torch.set_num_threads(threads)


@final
class SharedBar:
    """A progress bar that several threads advance."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self._lock = bar, Lock()

    def advance(self, n: float = 1, note: str = "") -> None:
        with self._lock:
            self.bar.advance(n, note)
