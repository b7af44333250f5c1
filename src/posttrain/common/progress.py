"""Progress for all long work: rate and time left, on stderr, quiet when it is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

EVERY = 10.0  # seconds between two plain lines
PERIOD = 600.0  # seconds over which the time left is told: a step may take a minute


class Bar(Protocol):
    def advance(self, n: float = 1, note: str = "") -> None: ...


@contextmanager
def progress(
    label: str,
    total: float | None,
    unit: str = "it",
    done: float = 0,
    view: RenderableType | None = None,
) -> Iterator[Bar]:
    """A bar with rate and time left; where stderr is no terminal, a plain line at most every ten seconds.

    done: how much an interrupted run had done before; it counts for no rate. view: drawn above the bar, a few
    times a second and from another thread; it takes the place of the notes.
    """
    if sys.stderr.isatty():
        with _rich(label, total, unit, done, view) as bar:
            yield bar
    else:
        yield _Lines(label, total, unit, done)


@contextmanager
def _rich(
    label: str, total: float | None, unit: str, before: float, view: RenderableType | None
) -> Iterator[Bar]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
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
        *([TextColumn("{task.fields[note]}", style="dim")] if view is None else []),
    )
    with _below(view)(*columns, console=_stderr(), speed_estimate_period=PERIOD) as shown:
        task = shown.add_task(label, total=total, completed=before, rate="", note="")  # type: ignore[arg-type]
        started = time.monotonic()

        class _Bar:
            done = 0.0

            def advance(self, n: float = 1, note: str = "") -> None:
                self.done += n
                rate = self.done / max(time.monotonic() - started, 1e-9)
                shown.update(task, advance=n, rate=f"{rate:,.1f} {unit}/s", note=note)

        yield _Bar()


def _below(view: RenderableType | None) -> type[Progress]:
    """Bars with something above them."""
    from rich.progress import Progress

    class Below(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if view is not None:
                yield view
            yield from super().get_renderables()

    return Below


@cache
def _stderr() -> Console:
    """One console for all bars: a bar inside another is then drawn below it and not over it."""
    from rich.console import Console

    return Console(stderr=True)


class _Lines:
    """Progress for logs and pipes."""

    def __init__(self, label: str, total: float | None, unit: str, done: float) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.started = self.said = time.monotonic()
        self.before = self.done = done

    def advance(self, n: float = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said < EVERY:
            return
        self.said = now
        rate = (self.done - self.before) / (now - self.started)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        of = f"/{self.total:,.0f}" if self.total else ""
        print(f"{self.label}: {self.done:,.0f}{of}, {rate:,.1f} {self.unit}/s{left} {note}", file=sys.stderr)
