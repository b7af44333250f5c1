"""The seam to whatever writes responses: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, field_validator

from posttrain.common.config import Config

# Tokens (each prompt once, and all its answers) that a local engine holds in its cache at once.
BATCH_TOKENS = 16_384


class SamplingParams(Config):
    """How responses are drawn.

    n: responses a prompt. temperature: 0 is greedy. The filters apply after it, in this order: top_k keeps
    the k likeliest tokens (and those as likely as the last of them), top_p the smallest set of likeliest
    tokens that holds this probability, min_p the tokens with at least this share of the likeliest one's
    probability (arXiv:2407.01082).
    stop: strings that end a response once they stand in its decoded text; its tokens run up to and with the
    one that completed the string, its text ends before the string. The model's own stop tokens end a
    response too.
    seed: with the same seed, the response to prompt i, sample j is the same whatever else is in the batch,
    as far as floating point allows.
    """

    n: int = Field(1, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("stop")
    @classmethod
    def _said(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in stop):
            raise ValueError("an empty stop string would end every response at once")
        return stop


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    token_ids: what was sampled, the stop token included; never empty.
    logps: natural-log probability of each token under the distribution it was sampled from, that is after
    temperature and filters; greedy decoding samples from a point mass, so there it is 0.
    finish: "stop" where the writer ended it, "length" where max_new_tokens or the model's length cut it off.
    model_logps: of the same tokens under the model itself, without temperature and filters; None where the
    engine does not know them.
    """

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Literal["stop", "length"]
    model_logps: tuple[float, ...] | None = None


class Engine(Protocol):
    """Writes responses to token-id prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        label: str = "sample",
        limits: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Return `params.n` completions for each prompt, in the order of `prompts`.

        label: what the progress bar calls the work. limits: for each prompt, at least 1, new tokens that it
        may have where that is less than params.max_new_tokens. Raises ConfigError for a prompt that is empty
        or leaves the model no room to answer.
        """
        ...


def limits_of(
    prompts: Sequence[Sequence[int]], params: SamplingParams, limits: Sequence[int] | None
) -> list[int]:
    """New tokens each prompt may have; see `Engine.generate`."""
    if limits is None:
        return [params.max_new_tokens] * len(prompts)
    return [min(limit, params.max_new_tokens) for _, limit in zip(prompts, limits, strict=True)]
