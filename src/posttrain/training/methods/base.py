"""What a training objective is: a config, the rows it takes, the streams it needs, and a pure loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain.common.config import Config
from posttrain.formats.rejects import RowError
from posttrain.records import Row

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forest import Branch, Forest
    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate
    from posttrain.training.advantages import Rollout

LOGPS, SCORES, VALUES = "logps", "scores", "values"
# Streams: log-probs under the reference, under the policy before the first update of a rollout, and as drawn.
REFERENCE, OLD, SAMPLER = "reference", "old_logps", "sampler_logps"


class MethodConfig(Config):
    """Base of all objectives' configs. `name` picks the objective in a recipe."""

    name: str
    recommended_lr: ClassVar[float]

    def aspects(self) -> tuple[str, ...]:
        """Names of the reward heads this objective trains; none for a policy."""
        return ()


@dataclass(frozen=True)
class Example:
    """One row made ready: its branches (for a pair: chosen, then rejected) and its numbers.

    row: id of the row it came from. columns: one float an example, NaN where the row says nothing.
    borrowed: how many of the branches, the last ones, are not the row's own: where they make it too long,
    they are left out and the row stays.
    family: examples of one family stand beside each other in a batch and share a tree; their loss goes by
    branches, since a tree is then more than one example. "" for an example on its own.
    """

    row: str
    branches: tuple[Branch, ...]
    columns: Mapping[str, float] = field(default_factory=dict)
    borrowed: int = 0
    family: str = ""


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the model's output.

    columns: [examples] each. streams: [N] each, aligned with the forest's wanted tokens; "reference" holds
    the reference model's log-probs. along: [M] each, a number for each wanted token of each branch (what two
    branches share has two). temperature: at which the forward's log-probs are taken.
    """

    forest: Forest
    columns: Mapping[str, Tensor]
    streams: Mapping[str, Tensor]
    along: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Unreduced: the objective is sum(weights * items) / sum(weights), both sums over the whole global batch.

    items, weights: [n]. metrics: [n] each, averaged with the same weights; NaN where an item says nothing,
    which is left out of that metric's mean.
    """

    items: Tensor
    weights: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One objective. needs: outputs of the forward and streams to be filled.

    data: the kind of rows it takes, or several kinds that may stand together; its own kind first.
    settle: where numbers that a config leaves open come from the training rows: (config, rows) -> config.
    encode: rows -> one Example each, or the RowError that says why not; None for an objective that learns
    from nothing but answers just sampled. at_once: `encode` must see all rows of a side together, since they
    stand beside each other. advantages: for an objective without `encode`, a Rollout -> the streams along its
    tokens, [M] each.
    """

    config: type[MethodConfig]
    data: type[Row] | tuple[type[Row], ...]
    needs: frozenset[str]
    loss: Callable[[Any, Output, Batch], Loss]
    encode: Callable[[Any, Sequence[Any], ChatTemplate], list[Example | RowError]] | None = None
    at_once: bool = False
    advantages: Callable[[Any, Rollout], dict[str, Tensor]] | None = None
    settle: Callable[[Any, Sequence[Any]], Any] | None = None

    @property
    def kinds(self) -> tuple[type[Row], ...]:
        """The kinds of rows it takes, its own first."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    def wants_reference(self, cfg: MethodConfig) -> bool:
        """Whether the reference model's log-probs are needed with this config."""
        return REFERENCE in self.needs and not getattr(cfg, "reference_free", False)
