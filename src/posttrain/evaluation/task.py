"""The seam for whatever measures a model: a task is a config that turns a model into outcomes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from posttrain.common.config import Config
from posttrain.engines.protocol import SamplingParams
from posttrain.feedback.judge import Account
from posttrain.models.precision import Precision
from posttrain.records import Prompt, Response

if TYPE_CHECKING:
    from posttrain.models.load import Model

ModelKind = Literal["policy", "reward"]
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What one model did on one item.

    item: id of the item, unique within the task and the same for every model: differences are paired by it.
    cluster: key of the prompt (`records.prompt_key`); items that share it are not independent.
    metrics: None is the third state (cut off, unparseable, no answer): counted and shown, never imputed.
    weights: weight of the item in a metric's mean, 1 where not named (tokens for a loss per token).
    group: a stratum of the task (known / rare / unknown, easy / hard), "" for none.
    note: why, where a metric is None or a judge gave its reason.
    """

    item: str
    cluster: str
    metrics: dict[str, float | None]
    group: str = ""
    prompt: str = ""
    response: str = ""
    note: str = ""
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class EvalContext:
    """One model under evaluation: opens what a task asks for, once, and shares it between the tasks.

    model_path: model folder or hub id. seed: of sampling and of the choice of items. precision, device: as in
    training. limit: at most so many items a task, the same ones for every model; None is all. sampling: how
    answers are drawn where a task does not say. account: for judges that pay for their answers.
    """

    model_path: str
    seed: int = 0
    limit: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    precision: Precision = "auto"
    device: str = "auto"
    label: str = "evaluate"
    account: Account | None = None
    _opened: dict[Any, Any] = field(default_factory=dict, repr=False)

    def model(self) -> Model:
        """The model, loaded once, in evaluation mode."""
        return self.model_at(self.model_path)

    def model_at(self, path: str) -> Model:
        """Another model that a task compares with (a reference), loaded once a context."""
        key = ("model", path)
        if key not in self._opened:
            from posttrain.evaluation.open import open_model

            self._opened[key] = open_model(path, self.precision, self.device)
        found: Model = self._opened[key]
        return found

    def kind(self) -> ModelKind:
        """ "reward" for a model with reward heads: its answers and log-probs mean nothing."""
        return "policy" if self.model().reward_head is None else "reward"

    def respond(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[tuple[Response, ...]]:
        """The model's `params.n` answers to each prompt, in order; the same prompts are asked once a context.

        params: `self.sampling` where None. The context's seed is added to the one in `params`.
        Raises ConfigError for a prompt that leaves the model no room to answer.
        """
        from posttrain.evaluation.open import respond_once

        params = params or self.sampling
        params = params.model_copy(update={"seed": params.seed + self.seed})
        return respond_once(self.model(), prompts, params, self._opened, self.label)

    def take(self, items: Sequence[T]) -> list[T]:
        """At most `limit` of the items, drawn with the seed, in their order; the same for every model."""
        if self.limit is None or len(items) <= self.limit:
            return list(items)
        kept = random.Random(self.seed).sample(range(len(items)), self.limit)
        return [items[i] for i in sorted(kept)]

    def close(self) -> None:
        """Let go of every model."""
        self._opened.clear()


class Task(Protocol):
    """What a suite needs of a task. `TaskConfig` is the base to build one on."""

    @property
    def headline(self) -> str:
        """The metric that stands for the task in the stage table."""
        ...

    def applicable(self, kind: ModelKind) -> bool:
        """Whether a model of this kind can be asked at all; where not, "not applicable" is shown, never 0."""
        ...

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an item, in a stable order.

        Raises DataError where the items cannot be read, ConfigError where the model cannot do what is asked.
        """
        ...


class TaskConfig(Config):
    """Base of tasks: a frozen config whose class says how to read its numbers.

    headline: the metric of the stage table. title: what a reader calls the task. units: by metric ("nats").
    lower_is_better: the metrics for which it is; the others are better when higher, but for the undirected
    ones, of which neither can be said.
    amounts: metrics without a unit that are no proportions, even where all values happen to be 0 or 1. What
    is said of `m` in units and amounts holds for `m@2` too.
    wins: a metric by whose value two models' answers to one item are also compared as won, tied or lost.
    kinds: the models that can be asked.
    """

    headline: ClassVar[str]
    title: ClassVar[str] = ""
    units: ClassVar[dict[str, str]] = {}
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    undirected: ClassVar[frozenset[str]] = frozenset()
    amounts: ClassVar[frozenset[str]] = frozenset()
    wins: ClassVar[str | None] = None
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"policy"})

    def asks(self) -> list[Any] | None:
        """Sources of the prompts that the task makes itself, as a recipe writes them: what training rows are
        decontaminated against, beside the data that its fields name. None where it cannot say.
        """
        return []

    def measures(self) -> frozenset[str] | None:
        """The metrics that its outcomes name; None where that is known only once it has run."""
        return None

    def applicable(self, kind: ModelKind) -> bool:
        """Whether a model of this kind can be asked at all."""
        return kind in self.kinds

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an item, in a stable order."""
        raise NotImplementedError

    def figures(self, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        """Data of figures that the page draws for a model: each a mapping with its `kind`."""
        return []
