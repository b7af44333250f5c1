"""Long work over many items, kept chunk by chunk, so that a killed step goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from posttrain.common.errors import StoreError
from posttrain.common.files import atomic

T = TypeVar("T")


def in_chunks(
    items: Sequence[T], size: int, state: Path, work: Callable[[int, Sequence[T]], Sequence[bytes]]
) -> Iterator[list[bytes]]:
    """Yield what `work(number, chunk)` makes of each run of `size` items, as lines of bytes.

    A chunk's lines are written to `state` whole or not at all; one that is there is read and not made again.
    `work` must depend on its arguments alone, so that an interrupted run gives what an undisturbed one gives.
    Raises StoreError for a kept chunk that is not what was written.
    """
    for number, start in enumerate(range(0, len(items), size)):
        kept = state / f"chunk-{number:06d}"
        if not kept.exists():
            keep_sealed(kept, work(number, items[start : start + size]))
        yield read_sealed(kept)


def keep_sealed(kept: Path, lines: Sequence[bytes]) -> None:
    """Write lines, each with its end, and a hash of them, whole or not at all."""
    with atomic(kept, "wb") as f:
        f.writelines([*lines, _seal(b"".join(lines))])


def _seal(lines: bytes) -> bytes:
    return hashlib.sha256(lines).hexdigest().encode() + b"\n"


def read_sealed(kept: Path) -> list[bytes]:
    """The lines that `keep_sealed` wrote. Raises StoreError where the file holds anything else."""
    *lines, seal = kept.read_bytes().split(b"\n")[:-1] or [b""]
    whole = [line + b"\n" for line in lines]
    if seal + b"\n" != _seal(b"".join(whole)):
        raise StoreError(
            f"{kept}, which an interrupted run has left, is damaged or of another version; delete that file "
            "to have its part of the work done again"
        )
    return whole
