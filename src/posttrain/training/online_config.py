"""What a training run says about answers sampled as it goes: to which prompts, how many, judged by whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from posttrain.common.config import Config, DataRef, Runtime
from posttrain.engines.protocol import BATCH_TOKENS, SamplingParams
from posttrain.feedback.judge_use import JudgeField
from posttrain.feedback.pairing import Pairs
from posttrain.feedback.verdicts import LARGEST
from posttrain.training.methods import method_config
from posttrain.training.methods.base import MethodConfig


class Mix(Config):
    """Rows learned beside the answers, lest what they taught be lost: PPO-ptx (InstructGPT, arXiv 2203.02155,
    equation 2).

    data: rows of the objective `method` (pretrain or sft). weight: of their mean loss a token against the
    main objective. rows: how many each optimizer step takes.
    """

    data: DataRef | list[DataRef]
    method: SerializeAsAny[MethodConfig] = Field(default="pretrain", validate_default=True)
    weight: float = Field(1.0, gt=0)
    rows: int = Field(8, gt=0)

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> MethodConfig:
        method = method_config(value)
        if method.name not in ("pretrain", "sft"):
            raise ValueError(f"pretrain or sft, not {method.name}: every token of a mix weighs the same")
        return method


class MonitorConfig(Config):
    """A gold judge that looks on and is never learned from (see docs/rlhf-monitor.md).

    judge: where the truth is known, the truth (`playground/oracle`); elsewhere a judge that the reward was
    not made with. every: rollouts from one check to the next; the first is of the policy as it began.
    level: of the interval by which gold must have fallen from its best. tolerance: by how much it may, in the
    gold judge's units. patience: such checks in a row that are an alarm. stop: training ends at an alarm; the
    policy saved is the one at that moment.
    """

    judge: JudgeField
    every: int = Field(1, ge=1)
    level: float = Field(0.99, gt=0.5, lt=1)
    tolerance: float = Field(0.0, ge=0)
    patience: int = Field(2, ge=1)
    stop: bool = False


class OnlineConfig(Config):
    """Answers are sampled from the policy, judged, learned from, and sampled anew.

    prompts: rows with prompts. judge: gives the reward: any judge that scores (a verifier, a reward model,
    weighted_sum, …). n: answers a prompt. rollout_prompts: prompts answered before the next updates, by
    default `batch_size`, so that every update learns from the policy's own answers. passes: over the answers
    of a rollout. max_new_tokens, temperature: of the sampling; log-probs of training are taken at the same
    temperature, so there are no filters such as top_p, under which what is drawn and what is learned differ.
    stop: strings that end an answer, beside the model's stop tokens; the judge sees the text before one.
    truncated: reward of an answer that was cut off before it stopped; "judge" puts it to the judge as if it
    had ended there, and takes `end_penalty` off its score; None: it is left out of the loss and counted, as
    is every answer to which the judge gave no score.
    pairs, min_gap: for objectives that learn from comparisons, which pairs of a prompt's answers to make
    (as in `judge`). good_above: for objectives that learn from labels, the score from which on an answer is
    good; None is the mean of its prompt's answers.
    mix: other rows to learn beside. monitor: a gold judge that tells whether the reward is still worth
    having. keep_samples: answers of each rollout kept in samples.jsonl to be looked at.
    batch_tokens: bound on the tokens held in the sampler's cache at once (memory, not result).
    """

    prompts: DataRef | list[DataRef]
    judge: JudgeField
    n: int = Field(4, ge=1)
    rollout_prompts: int | None = Field(None, gt=0)
    passes: int = Field(1, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    stop: tuple[str, ...] = ()
    truncated: float | Literal["judge"] | None = None
    end_penalty: float = Field(0.0, ge=0)
    pairs: Pairs = "best_worst"
    min_gap: float = Field(0.0, ge=0)
    good_above: float | None = None
    mix: Mix | None = None
    monitor: MonitorConfig | None = None
    keep_samples: Annotated[int, Runtime(), Field(ge=0)] = 4
    batch_tokens: Annotated[int, Runtime(), Field(ge=1)] = BATCH_TOKENS

    @model_validator(mode="after")
    def _enough(self) -> OnlineConfig:
        if self.n == 1 and {"pairs", "min_gap"} & self.model_fields_set:
            raise ValueError("pairs need n of 2 or more answers a prompt")
        if self.end_penalty and self.truncated != "judge":
            raise ValueError(
                "end_penalty is taken off the judge's score of a cut-off answer: it needs `truncated: judge`"
            )
        self.sampling(0)  # refuses what cannot be sampled with
        return self

    @field_validator("truncated", mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"a reward, judge or null, not {str(value).lower()}")
        return value

    @field_validator("truncated", "end_penalty", "min_gap", "good_above")
    @classmethod
    def _of_a_score(cls, value: Any) -> Any:
        """As large as a score may be, and no larger."""
        if isinstance(value, float) and abs(value) > LARGEST:
            raise ValueError(
                f"{value:g} lies beyond ±{LARGEST:g}, and the variance of such rewards overflows"
            )
        return value

    def sampling(self, seed: int) -> SamplingParams:
        """How a rollout with this seed is drawn."""
        return SamplingParams(
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop=self.stop,
            seed=seed,
        )
