"""The step `pivotal`: where does the success of an answer turn, and pairs of single tokens to learn from."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.common.config import Config, DataRef, Runtime
from posttrain.common.errors import DataError
from posttrain.common.step import Step, StepContext
from posttrain.engines.engines import EngineField, read_engine
from posttrain.engines.http import Http
from posttrain.engines.protocol import BATCH_TOKENS, SamplingParams
from posttrain.feedback.judge_use import JudgeField
from posttrain.models.precision import Precision
from posttrain.models.spec import SpecField


class PivotalConfig(Config):
    """Which tokens of a model's answers raise or lower p(success), and what to set against each.

    engine: "local" or another that takes token ids. model: whose answers; a folder, hub id or `@step`.
    prompts: rows with prompts, and what the judge needs to grade answers to them. limit: at most so many.
    judge: gives a score; success is a score of at least `success`. sampling: how answers are drawn; n, seed
    and stop are not among it. no_answer, truncated: what a rollout is that the judge cannot grade, or that
    does not come to its end: "exclude" leaves it out of p, "failure" counts it as one; both are counted.
    p_gap: change of p(success) that makes a token pivotal. low, high: p of the questions that are searched.
    trajectories: answers to a question that are searched, the first ones that can be graded.
    rollouts: in a round, from a prefix. max_rollouts: in the search, from a prefix; a change that is not
    clear by then goes by the estimate. search_error: chance of each of its decisions to be wrong where it
    stops before.
    confirm_rollouts: fresh ones, from a candidate's prefix and after either token, each. error: expected
    share of false ones among the pivots reported and among the pairs; 1 - error is the intervals' coverage.
    other_gap: by how much the other token of a pair must surely move p the other way.
    max_rejected: share of prompts that may be unusable before the step fails.
    batch_tokens: bound on the tokens in the model's cache at once (memory, not result).
    """

    engine: EngineField = Field(default_factory=partial(read_engine, "local"))
    model: SpecField | None = None
    prompts: DataRef
    limit: int | None = Field(None, ge=1)
    judge: JudgeField
    success: float = 1.0
    sampling: SamplingParams = SamplingParams()
    no_answer: Literal["exclude", "failure"] = "exclude"
    truncated: Literal["exclude", "failure"] = "exclude"
    p_gap: float = Field(0.2, gt=0, lt=1)
    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.8, ge=0, le=1)
    trajectories: int = Field(1, ge=1)
    rollouts: int = Field(16, ge=2)
    max_rollouts: int = Field(64, ge=2)
    search_error: float = Field(0.2, gt=0, lt=1)
    confirm_rollouts: int = Field(512, ge=2)
    error: float = Field(0.05, gt=0, lt=1)
    other_gap: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    max_rejected: float = Field(0.01, ge=0, le=1)
    precision: Precision = "auto"
    batch_tokens: Annotated[int, Runtime(), Field(ge=1)] = BATCH_TOKENS
    device: Annotated[str, Runtime()] = "auto"

    @model_validator(mode="after")
    def _together(self) -> PivotalConfig:
        if isinstance(self.engine.engine, Http):
            raise ValueError(gives_texts(self.engine.name))
        self.engine.check(self.model_fields_set, self.model, self.sampling)
        plain = SamplingParams()
        for name in ("n", "seed", "stop"):
            if getattr(self.sampling, name) != getattr(plain, name):
                raise ValueError(
                    f"sampling: '{name}' is set, but rollouts, seed and the model's stop tokens say it here"
                )
        if self.sampling.temperature == 0:
            raise ValueError("sampling: temperature 0 gives one answer only, so p(success) is 0 or 1")
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) lies above high ({self.high:g})")
        if self.max_rollouts % self.rollouts:
            raise ValueError(f"max_rollouts ({self.max_rollouts}) is no multiple of rollouts")
        if self.confirm_rollouts < self.rollouts:
            raise ValueError(f"confirm_rollouts ({self.confirm_rollouts}) is less than rollouts")
        return self


def gives_texts(engine: str) -> str:
    """What to say of an engine that knows no token ids."""
    return f"engine {engine} gives texts; pivotal continues answers token by token: use local or vllm"


def run(cfg: PivotalConfig, ctx: StepContext) -> dict[str, Any]:
    """Write `rows.jsonl` of token-exact comparisons, `trajectories.jsonl`, `questions.jsonl`, `ledger.json`
    and `rejected.jsonl`. What a killed run finished is kept.
    """
    from posttrain.feedback.label_cost import cost_of
    from posttrain.feedback.pivotal.opening import open_world
    from posttrain.feedback.pivotal.outcome import find, write

    world = open_world(cfg, ctx)
    found, trials = find(cfg, world.roller)
    pairs = write(cfg, ctx.out, world, found, trials)
    states = Counter(each.state for each in found)
    if states["unknown"] == len(found):
        raise DataError(
            f"{cfg.prompts}: judge '{cfg.judge.name}' graded too few answers to each of the {len(found)} "
            "questions: they need what it grades by (references), and answers that end within max_new_tokens "
            f"({cfg.sampling.max_new_tokens}); see {ctx.out / 'questions.jsonl'}"
        )
    pivots = Counter(trial.state for trial in trials)
    ledger = json.loads((ctx.out / "ledger.json").read_text("utf-8"))
    return {
        "model": world.writer.name,
        "questions": len(found),
        "states": dict(states),
        "trajectories": sum(len(each.trajectories) for each in found),
        "candidates": len(trials),
        "confirmed": pivots["confirmed"],
        "refuted": pivots["refuted"],
        "not_clear": pivots["undecided"],
        "comparisons": pairs,
        "undecided_stretches": sum(each.undecided for each in found),
        "blind_stretches": sum(each.blind for each in found),
        "repeated_prompts": world.repeated,
        "rejected": world.rejected,
        "ledger": ledger,
    } | cost_of(world.roller.grading.judge, pairs)


STEP = Step("pivotal", PivotalConfig, run, version=2)
