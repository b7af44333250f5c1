"""From logits to tokens, all rows at once, each row with noise of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.common.errors import TrainingError
from posttrain.engines.protocol import SamplingParams

# Tokens whose probabilities are summed at once: first a block is drawn, then a token in it.
_BLOCK = 256
# Logits that are worked on at once on the CPU: the float32 copies of more would count beside the cache.
_CHUNK = 2**20
# Among so many of the likeliest tokens top_p looks first; only where they do not suffice are all sorted.
_LIKELIEST = 1024


@dataclass(frozen=True)
class Draw:
    """One token a row. tokens: [R] int64.

    logps: [R] float32, under the distribution drawn from (0 where greedy). model_logps: [R] float32, under
    the model's own, untempered and unfiltered.
    """

    tokens: Tensor
    logps: Tensor
    model_logps: Tensor

    def __getitem__(self, rows: slice) -> Draw:
        return Draw(self.tokens[rows], self.logps[rows], self.model_logps[rows])


def uniforms(seed: int, rows: Sequence[tuple[int, int]], steps: int) -> np.ndarray:
    """Float64 in [0, 1), [rows, steps]: the noise of a row (prompt, sample) depends on it and the seed alone.

    Philox is counter-based and its stream is fixed by numpy's compatibility policy.
    """
    draws = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *row)))).random(steps)
        for row in rows
    ]
    return np.stack(draws) if draws else np.empty((0, steps))


def draw(
    logits: Tensor,  # [R, V]
    params: SamplingParams,
    uniform: Tensor | None,  # [R] float64 in [0, 1); None is greedy
) -> Draw:
    """Draw one token a row. Raises TrainingError where the logits of a row are no distribution."""
    rows = logits.shape[0]
    if logits.device.type == "cpu":
        rows = max(1, _CHUNK // logits.shape[1])
    parts = [
        _draw(logits[a : a + rows], params, None if uniform is None else uniform[a : a + rows])
        for a in range(0, logits.shape[0], rows)
    ]
    if len(parts) == 1:
        return parts[0]
    return Draw(*(torch.cat([getattr(part, name) for part in parts]) for name in Draw.__dataclass_fields__))


def _draw(logits: Tensor, params: SamplingParams, uniform: Tensor | None) -> Draw:
    if uniform is not None and weights_are_the_models(params):
        tokens, share = invert(logits.softmax(-1, dtype=torch.float32), uniform)
        logps = share.log()
        return Draw(tokens, logps, logps)
    raw = logits.float()
    if uniform is None:
        best, tokens = raw.max(-1)
        # the mode's log-probability is -log sum exp(x - max), and its probability is never tiny
        certain = raw.softmax(-1).gather(-1, tokens[:, None])[:, 0]
        _refuse_no_distribution(certain)
        return Draw(tokens, torch.zeros_like(best), certain.log())
    weights = probabilities(raw, params)
    tokens, share = invert(weights, uniform)
    logps = share.log()
    best, mode = raw.max(-1)
    top = raw.softmax(-1).gather(-1, mode[:, None])[:, 0].log()
    return Draw(tokens, logps, raw.gather(-1, tokens[:, None])[:, 0] - best + top)


def _refuse_no_distribution(mass: Tensor) -> None:
    """mass: [R], what probabilities of a row sum to; above 0 for a row with finite logits."""
    least, most = (float(bound) for bound in mass.aminmax())
    if not 0 < least <= most < math.inf:  # nor where one is no number, for then both bounds are none
        raise TrainingError(
            "the model's logits are not finite numbers, so nothing can be sampled: its weights are damaged, "
            "or its training diverged (lower optimizer.lr)"
        )


def weights_are_the_models(params: SamplingParams) -> bool:
    """Whether the distribution that is drawn from is the model's own."""
    unfiltered = params.top_k is None and params.top_p in (None, 1) and not params.min_p
    return params.temperature == 1 and unfiltered


def probabilities(
    logits: Tensor,  # [R, V] float32
    params: SamplingParams,
) -> Tensor:  # [R, V] float32
    """What is drawn from: temperature, top_k, top_p, min_p in turn, 0 for a token ruled out.

    Rows of a filtered distribution need not sum to 1: `invert` divides by what they sum to.
    """
    if params.temperature != 1:
        # the largest taken away first, lest a small temperature make it infinite
        logits = (logits - logits.amax(-1, keepdim=True)).div_(params.temperature)
    if params.top_k is not None and params.top_k < logits.shape[-1]:
        least = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    weights = logits.softmax(-1)
    if params.top_p is not None and params.top_p < 1:
        weights = _nucleus(weights, params.top_p)
    if params.min_p:
        weights = weights.masked_fill_(weights < weights.amax(-1, keepdim=True) * params.min_p, 0)
    return weights


def _nucleus(weights: Tensor, share: float) -> Tensor:
    """Keep the smallest set of likeliest tokens with this share of 1; of equals, those of lower id."""
    ordered = weights.topk(min(_LIKELIEST, weights.shape[-1]), dim=-1).values
    if bool((ordered.sum(-1, dtype=torch.float64) < share).any()):
        ordered = weights.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    # [R, 1], the likeliest one always; also of a row that is no distribution, which `invert` refuses
    kept = (before < share).sum(-1, keepdim=True).clamp(min=1)
    least = ordered.gather(-1, kept - 1)
    ruled_out = weights < least
    tied = (weights.shape[-1] - ruled_out.sum(-1) > kept[:, 0]).nonzero()[:, 0]  # rows with too many
    if len(tied):
        above, equal = weights[tied] > least[tied], weights[tied] == least[tied]
        among = equal.cumsum(-1) <= kept[tied] - above.sum(-1, keepdim=True)
        ruled_out[tied] = ~(above | (equal & among))
    return weights.masked_fill_(ruled_out, 0)


def invert(
    weights: Tensor,  # [R, V] float32, not negative
    uniform: Tensor,  # [R] float64 in [0, 1)
) -> tuple[Tensor, Tensor]:  # [R] int64, [R] float32
    """The token at which each row's cumulative share passes `uniform`, and its own share of the row.

    In two steps, so that the vocabulary is read once and little of it summed in float64: the block of
    tokens, then the token within it.
    """
    vocab = weights.shape[1]
    whole = vocab // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1) if whole else weights[:, :0]
    if whole < vocab:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    _refuse_no_distribution(sums.sum(-1))
    block, rest, total = _pass(sums, uniform)
    ids = block[:, None] * _BLOCK + torch.arange(min(_BLOCK, vocab), device=weights.device)
    inside = weights.gather(-1, ids.clamp(max=vocab - 1)).masked_fill(ids >= vocab, 0)
    place, _, _ = _pass(inside, rest)
    tokens = block * _BLOCK + place
    share = weights.gather(-1, tokens[:, None])[:, 0].double() / total
    return tokens, share.float()


def _pass(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cumulative share passes `uniform`; how far into that entry, as a share of it; the sum.

    The threshold stays under the sum, and the entry's own weight is never 0.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    at = torch.searchsorted(cumulative, threshold, right=True)
    own = weights.gather(-1, at).double()
    rest = (threshold - (cumulative.gather(-1, at) - own)) / own
    # rounding may put it a hair outside
    return at[:, 0], rest.clamp(0, 1 - 2**-53)[:, 0], total[:, 0]
