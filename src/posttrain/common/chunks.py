"""Long work over many items, kept chunk by chunk, so that a killed step goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from posttrain.common.files import atomic

T = TypeVar("T")


def in_chunks(
    items: Sequence[T], size: int, state: Path, work: Callable[[int, Sequence[T]], Sequence[bytes]]
) -> Iterator[list[bytes]]:
    """Yield what `work(number, chunk)` makes of each run of `size` items, as lines of bytes.

    A chunk's lines are written to `state` whole or not at all; one that is there is read and not made again.
    `work` must depend on its arguments alone, so that an interrupted run gives what an undisturbed one gives.
    """
    for number, start in enumerate(range(0, len(items), size)):
        kept = state / f"chunk-{number:06d}"
        if not kept.exists():
            with atomic(kept, "wb") as f:
                f.writelines(work(number, items[start : start + size]))
        yield kept.read_bytes().splitlines(keepends=True)
