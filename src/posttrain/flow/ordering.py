"""Steps in an order in which each stands after what it needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from posttrain.common.errors import ConfigError
from posttrain.flow.references import references_in
from posttrain.flow.variants import FlatStep


def needs_of(step: FlatStep, names: Collection[str]) -> set[str]:
    """The steps among `names` that a step refers to."""
    return {reference.name for reference in references_in(step.body) if reference.name in names}


def in_order(steps: Sequence[FlatStep]) -> list[FlatStep]:
    """After what each needs, and else as given. Raises ConfigError for steps that need each other."""
    by_name = {step.name: step for step in steps}
    left = {step.name: needs_of(step, by_name) for step in steps}
    done: list[FlatStep] = []
    while left:
        ready = next((name for name, needs in left.items() if not needs & left.keys()), None)
        if ready is None:
            circle = ", ".join(sorted(left))
            raise ConfigError(f"{by_name[min(left)].places.at()}: these steps need each other: {circle}")
        done.append(by_name[ready])
        del left[ready]
    return done
