"""From logits to tokens, all rows at once, each row with noise of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.engines.protocol import SamplingParams


def uniforms(seed: int, rows: Sequence[tuple[int, int]], steps: int) -> np.ndarray:
    """Float64 in [0, 1), [rows, steps]: the noise of a row (prompt, sample) depends on it and the seed alone.

    Philox is counter-based and its stream is fixed by numpy's compatibility policy.
    """
    draws = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *row)))).random(steps)
        for row in rows
    ]
    return np.stack(draws) if draws else np.empty((0, steps))


def distribution(
    logits: Tensor,  # [R, V]
    params: SamplingParams,
) -> Tensor:  # [R, V] float32
    """Log-probabilities to draw from: temperature, top_k, top_p, min_p in turn; -inf for a token ruled out.

    At temperature 0 they are those of the model itself, whose mode greedy decoding takes.
    """
    logps = logits.float()
    if params.temperature == 0:
        return logps.log_softmax(-1)
    logps = (logps / params.temperature).log_softmax(-1)
    if params.top_k is not None and params.top_k < logps.shape[-1]:
        least = logps.topk(params.top_k, dim=-1).values[:, -1:]
        logps = _without(logps, logps < least)
    if params.top_p is not None and params.top_p < 1:
        ordered, index = logps.sort(dim=-1, descending=True, stable=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        logps = _without(
            logps, torch.zeros_like(logps, dtype=torch.bool).scatter(-1, index, before >= params.top_p)
        )
    if params.min_p:
        logps = _without(logps, logps < logps.amax(-1, keepdim=True) + math.log(params.min_p))
    return logps


def _without(logps: Tensor, ruled_out: Tensor) -> Tensor:
    return logps.masked_fill(ruled_out, -math.inf).log_softmax(-1)


def draw(
    logps: Tensor,  # [R, V] float32, normalised
    uniform: Tensor | None,  # [R] float64 in [0, 1); None is greedy
) -> tuple[Tensor, Tensor]:  # [R] int64, [R] float32
    """One token a row, by inverting the cumulative distribution, and its log-probability; 0 where greedy."""
    if uniform is None:
        return logps.argmax(-1), logps.new_zeros(logps.shape[0])
    cumulative = logps.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The sum is not quite 1; the threshold stays under it, lest a token of probability 0 be drawn.
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold, right=True)
    return tokens[:, 0], logps.gather(-1, tokens)[:, 0]
