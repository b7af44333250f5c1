"""The `train` step: any objective, any model, from rows to a standard model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from posttrain.common.config import Config, DataRef, ModelRef, Runtime
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step, StepContext
from posttrain.models.precision import Precision
from posttrain.models.spec import SpecField
from posttrain.records import Comparison, Rating
from posttrain.training.methods import method_config, method_named
from posttrain.training.methods.base import Method, MethodConfig
from posttrain.training.metrics import Tracker
from posttrain.training.online_config import OnlineConfig
from posttrain.training.schedule import OptimizerConfig


class TrainConfig(Config):
    """One training run.

    model: a folder, hub id or `@step`, or a mapping (ModelSpec: LoRA, a config to start from nothing, …).
    data: rows of the objective's kind. online: instead of rows, answers of the policy sampled and judged as
    it goes (OnlineConfig); the policy-gradient objectives know no other way.
    heldout: rows, or a share of `data` that is split off by prompt.
    reference: for objectives that need one; None is the model as it was before training.
    epochs: passes over the data; steps, where given, wins. batch_size: rows of one optimizer step;
    batch_tokens, where
    given, wins: as many rows as fit in that many tokens.
    max_length: longest row in tokens, by default the model's context; longer ones are rejected, documents cut
    into pieces.
    max_rejected: share of rows that may be unusable before the step fails.
    evaluate_every: steps between held-out evaluations, 0 for only before and after. early_stopping:
    evaluations without improvement before training stops and the best weights are kept.
    diverge: stop when the mean loss over 20 steps is this many times that of the first 20; 0 never.
    micro_tokens: tokens of one forward (memory, not result, but for KTO's reference point).
    checkpoint_seconds: between saved states.
    """

    model: SpecField
    method: SerializeAsAny[MethodConfig]
    data: DataRef | list[DataRef] | None = None
    online: OnlineConfig | None = None
    heldout: DataRef | Annotated[float, Field(gt=0, lt=1)] | None = None
    reference: ModelRef | None = None
    epochs: float = Field(1.0, gt=0)
    steps: int | None = Field(None, gt=0)
    batch_size: int = Field(8, gt=0)
    batch_tokens: int | None = Field(None, gt=0)
    max_length: int | None = Field(None, gt=1)
    max_rejected: float = Field(0.01, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluate_every: int = Field(0, ge=0)
    early_stopping: int | None = Field(None, gt=0)
    diverge: float = Field(3.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Precision = "auto"
    save_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    micro_tokens: Annotated[int, Runtime(unless="by_micro_batch"), Field(gt=0)] = 1536
    checkpoint_seconds: Annotated[float, Runtime(), Field(gt=0)] = 120.0
    log_every: Annotated[int, Runtime(), Field(gt=0)] = 1
    log: Annotated[tuple[Tracker, ...], Runtime()] = ()
    device: Annotated[str, Runtime()] = "auto"

    @property
    def by_micro_batch(self) -> bool:
        """Whether `micro_tokens` changes the result."""
        return bool(getattr(self.method, "by_micro_batch", False))

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> MethodConfig:
        if not isinstance(value, Mapping | str | MethodConfig):
            raise ValueError(f"a mapping with a name, such as {{name: dpo, beta: 0.1}}, not {value!r}")
        try:
            return method_config(value)
        except ConfigError as e:
            raise ValueError(str(e)) from None

    @model_validator(mode="after")
    def _fit_together(self) -> TrainConfig:
        method = method_named(self.method.name)
        self._check_source()
        if self.reference is not None and not method.wants_reference(self.method):
            raise ValueError(f"'reference' is set, but {self.method.name} as configured uses none")
        if self.early_stopping is not None and (self.heldout is None or not self.evaluate_every):
            raise ValueError("early_stopping needs heldout and evaluate_every")
        if self.optimizer.lr is None:
            lr = type(self.method).recommended_lr
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update={"lr": lr}))
        return self

    def _check_source(self) -> None:
        """Rows or answers, one of them, and enough answers a prompt for the objective."""
        method = method_named(self.method.name)
        if method.advantages is not None and (self.online is None or self.data is not None):
            raise ValueError(
                f"{self.method.name} learns from answers it samples: give 'online' (prompts, judge, …) "
                "in place of 'data'; rows to learn beside go to online.mix"
            )
        if (self.data is None) == (self.online is None):
            raise ValueError(
                "'data' is missing" if self.data is None else "give 'data' or 'online', not both"
            )
        if self.online is None:
            return
        judged = method.kinds[0] in (Comparison, Rating) and not self.method.aspects()
        if method.advantages is None and not judged:
            raise ValueError(f"{self.method.name} does not learn from judged answers; give 'data'")
        prompts = self.online.rollout_prompts
        if prompts is not None and prompts < self.batch_size:
            raise ValueError(
                f"online.rollout_prompts: {prompts} prompts are fewer than one update learns from "
                f"(batch_size: {self.batch_size})"
            )
        idle = self._idle(method)
        if idle:
            raise ValueError(f"{idle}: {self.method.name} on sampled answers does not read it; leave it out")
        if isinstance(self.heldout, float):
            raise ValueError("heldout: there is no data to split off from; give held-out rows")
        if self.heldout is not None and method.advantages is not None:
            raise ValueError(
                f"heldout: {self.method.name} has no loss on rows; evaluate the model afterwards"
            )
        least = getattr(self.method, "least_samples", 1 if method.kinds[0] is Rating else 2)
        if method.advantages is None and method.kinds[0] is Rating and self.online.good_above is None:
            least = 2
        self._check_horizon()
        if self.online.n < least:
            raise ValueError(
                f"online.n: {self.method.name} compares the answers to a prompt, so it needs {least} or more"
            )

    def _check_horizon(self) -> None:
        """One rollout's answers may not turn the sign of the weight that they adapt."""
        assert self.online is not None
        answers = self.online.n * (self.online.rollout_prompts or self.batch_size)
        horizon = getattr(self.method, "kl_horizon", 0)
        if getattr(self.method, "kl_target", None) is not None and 0.2 * answers >= horizon:
            raise ValueError(
                f"method.kl_horizon: {horizon} is no more than a fifth of a rollout's {answers} answers: kl "
                "would fall to 0 at one stroke"
            )

    def _idle(self, method: Method) -> str:
        """A field that is set and that this objective, on sampled answers, would not look at; "" for none."""
        assert self.online is not None
        unread = {"batch_tokens", "diverge"} & self.model_fields_set
        if method.kinds[0] is not Comparison:
            unread |= {f"online.{name}" for name in {"pairs", "min_gap"} & self.online.model_fields_set}
        if method.kinds[0] is Rating:  # the judge's scores make the labels, by online.good_above
            unread |= {f"method.{name}" for name in {"good_above", "aspect"} & self.method.model_fields_set}
        if getattr(self.method, "soft_labels", False):
            unread.add("method.soft_labels")
        if method.kinds[0] is not Rating:
            unread |= {f"online.{name}" for name in {"good_above"} & self.online.model_fields_set}
        return min(unread, default="")


def run(cfg: TrainConfig, ctx: StepContext) -> dict[str, Any]:
    """Train and save; the summary has losses before and after, cost, and what was rejected."""
    from posttrain.training.run import run_training

    return run_training(cfg, ctx)


STEP = Step("train", TrainConfig, run, version=5)
