"""Steps in this process, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from posttrain.flow.runner import Done, Job


class Executor(Protocol):
    """Runs the jobs of a recipe."""

    def run(self, jobs: Sequence[Job], work: Callable[[Job], Done]) -> Iterator[Done]:
        """Do `work` on every job, none before those it needs; yield what became of each as it is done.

        jobs: in an order in which each stands after those it needs. Errors of `work` rise as they are.
        """
        ...


class LocalExecutor:
    """In order, in this process; what a step held is let go of before the next begins."""

    def run(self, jobs: Sequence[Job], work: Callable[[Job], Done]) -> Iterator[Done]:
        for job in jobs:
            done = work(job)
            yield done
            if done.outcome != "hit":
                gc.collect()
