"""A model that is asked inside another step: the fields of `sample`, and its answers kept as that step keeps
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from posttrain.common.config import Runtime
from posttrain.common.step import StepContext
from posttrain.engines import sample
from posttrain.engines.engines import EngineField, read_engine
from posttrain.engines.protocol import BATCH_TOKENS, SamplingParams
from posttrain.engines.sample import SampleConfig, check_engine
from posttrain.formats.read import read_records
from posttrain.formats.rejects import Rejects
from posttrain.formats.write import write_records
from posttrain.models.precision import Precision
from posttrain.models.spec import SpecField
from posttrain.records import Prompt, Samples


class Asked(SamplingParams):
    """Who answers, and how: the fields of `sample` of the same names."""

    engine: EngineField = Field(default_factory=partial(read_engine, "local"))
    model: SpecField | None = None
    max_new_tokens: int = Field(64, ge=1)
    precision: Precision = "auto"
    batch_tokens: Annotated[int, Runtime(), Field(ge=1)] = BATCH_TOKENS
    device: Annotated[str, Runtime()] = "auto"

    @model_validator(mode="after")
    def _can_ask(self) -> Self:
        check_engine(self, self.engine, self.model)
        return self

    def of(self, prompts: str) -> SampleConfig:
        """The step that asks these prompts. No prompt without an answer fails it: who asks counts them."""
        given = {name: getattr(self, name) for name in self.model_fields_set & set(Asked.model_fields)}
        given |= {"n": self.n, "max_new_tokens": self.max_new_tokens}
        return SampleConfig(prompts=prompts, max_rejected=1.0, **given)


def check_draws(params: SamplingParams) -> None:
    """Raise ValueError for several answers of which all are the likeliest one: they are no draws, and what is
    reckoned from how often they are right, or agree, would be sure of one answer.
    """
    if params.n > 1 and (params.temperature == 0 or params.top_k == 1):
        what = "temperature: 0" if params.temperature == 0 else "top_k: 1"
        raise ValueError(f"{what} gives {params.n} times the same answer; raise it, or give n: 1")


def ask(asked: Asked, prompts: Sequence[Prompt], ctx: StepContext, name: str) -> tuple[list[Samples], Any]:
    """The answers to the prompts, and what `sample` tells of them. A prompt without any answer has no row.

    name: of the asking within the step; each has a folder of its own under its state, so that a killed run
    goes on. Raises DataError where there is not one answer.
    """
    state = ctx.state / name
    write_records(state / "prompts.jsonl", prompts)
    inner = StepContext(state / ctx.out.name, state / "state", f"{ctx.label}: {name}", ctx.cache or ctx.state)
    summary = sample.run(asked.of(str(state / "prompts.jsonl")), inner)
    return read_records(inner.out / "rows.jsonl", Samples), summary


def rejects_summary(rejects: Rejects) -> dict[str, Any]:
    """What a step's summary says of the rows that it did not use."""
    return {
        "rejected": {"rows": rejects.rejected, "reasons": dict(rejects.reasons.most_common())},
        "left_out": {"rows": rejects.left_out, "reasons": dict(rejects.choices.most_common())},
    }
