"""Where the loop's batches come from: rows that are already there, or (in `online`) answers just sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, final

from posttrain.training.methods.base import Batch, Example, Method, MethodConfig
from posttrain.training.offline import Plan, make_batch

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from posttrain.models.forest import Tree


@dataclass(frozen=True)
class Data:
    """Examples with their streams.

    streams: for each name one [N_i] tensor an example, a number a token of its tree. along: one [M_i] tensor
    an example, a number a token of each branch, branch after branch. temperature: of the log-probs.
    """

    examples: Sequence[Example]
    streams: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    along: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    temperature: float = 1.0

    def batch(self, chosen: Sequence[int], trees: Sequence[Tree], device: str) -> Batch:
        """The chosen examples, whose trees are given, as one forest."""
        return make_batch(
            [self.examples[i] for i in chosen],
            trees,
            {name: [values[i] for i in chosen] for name, values in self.streams.items()},
            {name: [values[i] for i in chosen] for name, values in self.along.items()},
            self.temperature,
            device,
        )


@dataclass(frozen=True)
class Part:
    """Rows learned beside the main objective by another one, whose every token weighs the same.

    weight: of their mean loss a token against the main objective's mean.
    """

    method: Method
    cfg: MethodConfig
    data: Data
    weight: float
    chosen: Sequence[int] = ()

    def of(self, chosen: Sequence[int]) -> Part:
        """These examples of it."""
        return replace(self, chosen=chosen)


@dataclass(frozen=True)
class Work:
    """What one optimizer step learns from. metrics: what is known before the step, written with its own.
    beside: rows of another objective.
    """

    data: Data
    chosen: Sequence[int]
    metrics: Mapping[str, float] = field(default_factory=dict)
    beside: Part | None = None


class Resumable(Protocol):
    """What a checkpoint keeps."""

    def state(self) -> dict[str, Any]:
        """What a killed run needs beside the number of steps to go on as if it had not been killed."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class Source(Resumable, Protocol):
    """Hands out global batches in an order that the seed and, online, the weights determine.

    view: what is drawn of it above the bar in a terminal, None for nothing.
    """

    @property
    def view(self) -> RenderableType | None: ...

    def note(self, values: Mapping[str, float]) -> str:
        """What stands beside the bar after a step that gave these metrics; a view takes note of them too."""
        ...

    def batches(self, start: int, stop: int) -> Iterator[Work]:
        """Those of optimizer steps `start` up to `stop`; each is asked for when the one before is learned."""
        ...


@final
class Offline:
    """Rows that are already there, pass after pass."""

    view = None

    def __init__(self, plan: Plan, data: Data) -> None:
        self.plan, self.data = plan, data

    def note(self, values: Mapping[str, float]) -> str:
        return f"loss {values['loss']:.4f}"

    def batches(self, start: int, stop: int) -> Iterator[Work]:
        for chosen in self.plan.batches(start, stop):
            yield Work(self.data, chosen)

    def steps(self, epochs: float) -> int:
        """Optimizer steps in so many passes over what there is."""
        return self.plan.steps(epochs)

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass
