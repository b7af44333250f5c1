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

LOGPS, SCORES, REFERENCE = "logps", "scores", "reference"


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
    """

    row: str
    branches: tuple[Branch, ...]
    columns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the model's output.

    columns: [examples] each. streams: [N] each, aligned with the forest's wanted tokens; "reference" holds
    the reference model's log-probs.
    """

    forest: Forest
    columns: Mapping[str, Tensor]
    streams: Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """Unreduced: the objective is sum(weights * items) / sum(weights), both sums over the whole global batch.

    items, weights: [n]. metrics: [n] each, averaged with the same weights.
    """

    items: Tensor
    weights: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One objective. needs: outputs of the forward and streams to be filled.

    encode: rows -> one Example each, or the RowError that says why not.
    """

    config: type[MethodConfig]
    data: type[Row]
    needs: frozenset[str]
    encode: Callable[[Any, Sequence[Any], ChatTemplate], list[Example | RowError]]
    loss: Callable[[Any, Output, Batch], Loss]

    def wants_reference(self, cfg: MethodConfig) -> bool:
        """Whether the reference model's log-probs are needed with this config."""
        return REFERENCE in self.needs and not getattr(cfg, "reference_free", False)
