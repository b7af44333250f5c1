"""Steps in an order in which each stands after what it needs."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from posttrain.common.errors import ConfigError
from posttrain.flow.references import references_in
from posttrain.flow.variants import FlatStep


def needs_of(step: FlatStep, names: Collection[str]) -> set[str]:
    """The steps among `names` that a step refers to."""
    return {reference.name for reference in references_in(step.body) if reference.name in names}


def in_order(steps: Sequence[FlatStep]) -> list[FlatStep]:
    """After what each needs, and else as given. Raises ConfigError for steps that need each other."""
    place = {step.name: i for i, step in enumerate(steps)}
    left = [needs_of(step, place) for step in steps]
    users: list[list[int]] = [[] for _ in steps]
    for i, needs in enumerate(left):
        for need in needs:
            users[place[need]].append(i)
    ready = [i for i, needs in enumerate(left) if not needs]
    done: list[FlatStep] = []
    while ready:
        i = heapq.heappop(ready)
        done.append(steps[i])
        for user in users[i]:
            left[user].discard(steps[i].name)
            if not left[user]:
                heapq.heappush(ready, user)
    if len(done) < len(steps):
        circle = sorted({step.name for step in steps} - {step.name for step in done})
        at = steps[place[circle[0]]].places.at()
        raise ConfigError(f"{at}: these steps need each other: {', '.join(circle)}")
    return done
