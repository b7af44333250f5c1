"""Progress for all long work: rate and time left, on stderr, quiet when it is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Bar(Protocol):
    def advance(self, n: float = 1, note: str = "") -> None: ...


@contextmanager
def progress(label: str, total: float | None, unit: str = "it") -> Iterator[Bar]:
    """A bar with rate and time left; where stderr is no terminal, a plain line at most every ten seconds."""
    if sys.stderr.isatty():
        with _rich(label, total, unit) as bar:
            yield bar
    else:
        yield _Lines(label, total, unit)


@contextmanager
def _rich(label: str, total: float | None, unit: str) -> Iterator[Bar]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=_stderr()) as shown:
        task = shown.add_task(label, total=total, rate="", note="")
        started = time.monotonic()

        class _Bar:
            done = 0.0

            def advance(self, n: float = 1, note: str = "") -> None:
                self.done += n
                rate = self.done / max(time.monotonic() - started, 1e-9)
                shown.update(task, advance=n, rate=f"{rate:,.1f} {unit}/s", note=note)

        yield _Bar()


@cache
def _stderr() -> Console:
    """One console for all bars: a bar inside another is then drawn below it and not over it."""
    from rich.console import Console

    return Console(stderr=True)


class _Lines:
    """Progress for logs and pipes."""

    def __init__(self, label: str, total: float | None, unit: str, every_s: float = 10.0) -> None:
        self.label, self.total, self.unit, self.every_s = label, total, unit, every_s
        self.started = self.said = time.monotonic()
        self.done = 0.0

    def advance(self, n: float = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said < self.every_s:
            return
        self.said = now
        rate = self.done / (now - self.started)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        of = f"/{self.total:,.0f}" if self.total else ""
        print(f"{self.label}: {self.done:,.0f}{of}, {rate:,.1f} {self.unit}/s{left} {note}", file=sys.stderr)
