"""What the policy-gradient objectives share: clipped surrogate, KL to the reference, how tokens weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.training.methods.base import OLD, REFERENCE, SAMPLER, Batch, MethodConfig

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forest import Forest

# Which estimate of KL(policy || reference) stands in the loss (Schulman, "Approximating KL divergence").
# With u = log π - log π_ref: k2 = u²/2, whose gradient is that of the KL; k3 = e^-u - 1 + u, as GRPO was
# published, whose value is an unbiased estimate of that KL and whose gradient, on samples of the policy, is
# that of KL(reference || policy).
Estimator = Literal["k2", "k3"]
Normalise = Literal["tokens", "responses", "sum"]


class PolicyConfig(MethodConfig):
    """Base of ppo, grpo and rloo.

    kl: weight of the KL to the reference; 0 needs no reference. kl_in: "reward" takes k1 = log π - log π_ref
    off the reward; "loss" adds `kl_estimate` to the loss (k2 or k3: see docs/rlhf.md for what each leads to).
    clip, clip_high: the ratio π/π_old is held in [1 - clip, 1 + clip_high]; clip_high None is clip (a larger
    one is DAPO's, arXiv 2503.14476). Without several updates a rollout the ratio is 1 and clips nothing.
    importance_clip: the mismatch of trainer and sampler is corrected by the weight min(π_old/π_sampler,
    this); None: not corrected, only logged.
    normalise: "tokens": every token of the batch weighs the same (DAPO); "responses": every answer, by the
    mean over its tokens (GRPO as published); "sum": every answer, by the sum over its tokens (REINFORCE, and,
    but for a constant, Dr. GRPO).
    """

    kl: float = Field(0.05, ge=0)
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimate: Estimator = "k3"
    clip: float = Field(0.2, gt=0)
    clip_high: float | None = Field(None, gt=0)
    importance_clip: float | None = Field(2.0, gt=0)
    normalise: Normalise = "tokens"
    least_samples: ClassVar[int] = 1

    @model_validator(mode="after")
    def _estimate_is_read(self) -> PolicyConfig:
        if self.kl_in == "reward" and self.kl_estimate != "k3":
            raise ValueError("kl_estimate is of the KL in the loss; in the reward it is k1: leave it out")
        return self

    @property
    def reference_free(self) -> bool:
        return self.kl == 0


def ratios(logps: Tensor, batch: Batch, sequence: bool) -> Tensor:
    """π/π_old of each token, [M]; of the whole answer, geometric mean over its tokens, where `sequence`
    (GSPO, arXiv 2507.18071, equation 7). logps: [M]. Where one update is made a rollout, π_old is π itself.
    """
    difference = logps - batch.along.get(OLD, logps.detach())
    if sequence:
        total = difference.new_zeros(batch.forest.branches).index_add(0, batch.forest.branch_of, difference)
        difference = (total / batch.forest.lengths)[batch.forest.branch_of]
    return difference.exp()


def surrogate(cfg: PolicyConfig, ratio: Tensor, advantages: Tensor) -> Tensor:
    """-min(ρ A, clip(ρ) A), [M] -> [M]: PPO (arXiv 1707.06347), equation 7."""
    high = cfg.clip if cfg.clip_high is None else cfg.clip_high
    held = ratio.clamp(1 - cfg.clip, 1 + high)
    return -(ratio * advantages).minimum(held * advantages)


def importance(cfg: PolicyConfig, logps: Tensor, batch: Batch) -> Tensor:
    """Truncated importance weight of what the sampler's arithmetic drew: [M], no gradient."""
    if cfg.importance_clip is None:
        return logps.new_ones(len(logps))
    return mismatch(logps, batch).exp().clamp(max=cfg.importance_clip)


def mismatch(logps: Tensor, batch: Batch) -> Tensor:
    """log π_old - log π_sampler: [M], no gradient. 0 where trainer and sampler computed the same."""
    return batch.along.get(OLD, logps.detach()) - batch.along[SAMPLER]


def kl_loss(cfg: PolicyConfig, logps: Tensor, batch: Batch) -> Tensor:
    """kl times the estimate at each token, [M]; 0 where the KL is in the reward."""
    if cfg.kl_in == "reward" or not cfg.kl:
        return logps.new_zeros(len(logps))
    u = logps - batch.along[REFERENCE]
    return batch.columns["kl"][0] * (u**2 / 2 if cfg.kl_estimate == "k2" else (-u).exp() - 1 + u)


def policy_items(
    cfg: PolicyConfig, logps: Tensor, batch: Batch, sequence: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy's part of the loss at each token, and what is worth knowing about it: [M] each."""
    ratio = ratios(logps, batch, sequence)
    advantages = batch.along["advantages"]
    items = importance(cfg, logps, batch) * surrogate(cfg, ratio, advantages) + kl_loss(cfg, logps, batch)
    high = cfg.clip if cfg.clip_high is None else cfg.clip_high
    outside = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - cfg.clip) & (advantages < 0))
    moved = ratio.detach().log()
    metrics = {
        "clipped": outside.float(),
        "kl_to_old": moved.exp() - 1 - moved,
        "sampler_mismatch": mismatch(logps, batch).abs(),
    }
    return items, metrics


def weighed(
    how: Normalise, items: Tensor, metrics: Mapping[str, Tensor], forest: Forest
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Items, weights and metrics, [M] each, such that Σ weights·items / Σ weights is the normalised loss."""
    if how == "tokens":
        return items, items.new_ones(len(items)), dict(metrics)
    lengths = forest.lengths[forest.branch_of]
    return (items * lengths if how == "sum" else items), 1 / lengths, dict(metrics)
