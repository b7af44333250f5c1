"""Proximal policy optimisation from feedback. Schulman et al. (arXiv 1707.06347), equations 7 and 9;
Ziegler et al. (arXiv 1909.08593), section 2; InstructGPT (arXiv 2203.02155), equation 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from posttrain.models.spec import SpecField
from posttrain.records import Document
from posttrain.training.methods.base import LOGPS, REFERENCE, VALUES, Batch, Loss, Method
from posttrain.training.methods.policy import PolicyConfig, policy_items, weighed

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.training.advantages import Rollout


class PPO(PolicyConfig):
    """critic: the model values come from: None is a value head on the policy's own trunk (one model trained);
    "lora" a LoRA of its own on the policy's base (the policy needs one, too); or a model, such as the reward
    model, whose value head then starts as its reward head.
    critic_lr: the critic's peak learning rate; None is the policy's.
    critic_warmup: rollouts at the start in which only the critic learns.
    gamma, lam: discount, and the trace of the generalised advantage estimate (arXiv 1506.02438).
    value_weight: of the value loss; value_clip: how far a value may move from its old one for its loss to
    fall, 0 for any distance.
    whiten: advantages of the whole rollout get mean 0 and standard deviation 1, over all its tokens.
    kl_target: the weight of the KL is adapted towards this KL an answer, nats (arXiv 1909.08593, section
    2.2), over kl_horizon answers; None keeps it.
    """

    name: Literal["ppo"] = "ppo"
    critic: SpecField | Literal["lora"] | None = None
    critic_lr: float | None = Field(None, gt=0)
    critic_warmup: int = Field(0, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    value_weight: float = Field(0.5, gt=0)
    value_clip: float = Field(0.2, ge=0)
    whiten: bool = True
    kl_target: float | None = Field(None, gt=0)
    kl_horizon: int = Field(10_000, gt=0)
    recommended_lr: ClassVar[float] = 1e-6

    def model_post_init(self, _: object) -> None:
        if self.kl_target is not None and not self.kl:
            raise ValueError("kl_target adapts kl, which is 0: set the weight to begin with")
        if self.kl_target is None and self.kl_horizon != type(self).model_fields["kl_horizon"].default:
            raise ValueError("kl_horizon says how fast kl is adapted to kl_target; give that, too")


def advantages(cfg: PPO, rollout: Rollout) -> dict[str, Tensor]:
    """The streams of a rollout, [M] each: advantages, returns, old_values.

    Returns are made before advantages are whitened: the critic learns the reward's own scale.
    """
    from posttrain.training.advantages import gae, token_rewards, whitened

    assert rollout.values is not None
    rewards = token_rewards(rollout, cfg.kl_in == "reward")
    gained, returns = gae(rewards, rollout.values, rollout.lengths, cfg.gamma, cfg.lam)
    return {
        "advantages": whitened(gained) if cfg.whiten else gained,
        "returns": returns,
        "old_values": rollout.values,
    }


def loss(cfg: PPO, out: Output, batch: Batch) -> Loss:
    """Clipped surrogate, KL where it is in the loss, and value_weight times the clipped value loss, at each
    token. out.logps, out.values: [N].
    """
    assert out.logps is not None
    assert out.values is not None
    token_of = batch.forest.token_of
    items, metrics = policy_items(cfg, out.logps[token_of], batch)
    learns = batch.columns["policy"][batch.forest.tree_of[batch.forest.branch_of]]
    values = out.values[token_of]
    costs = value_loss(values, batch.along["old_values"], batch.along["returns"], cfg.value_clip)
    metrics |= {"policy_loss": items.detach(), "value_loss": costs.detach(), "value": values.detach()}
    if cfg.value_clip:
        apart = (values.detach() - batch.along["old_values"]).abs()
        metrics["value_clipped"] = (apart > cfg.value_clip).float()
    total = cfg.value_weight * costs
    if learns.any():  # else the policy has no gradient at all: one of 0 would still decay its weights
        total = total + items * learns
    return Loss(*weighed(cfg.normalise, total, metrics, batch.forest))


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((v - R)², (clip(v, old ± c) - R)²), [M]; differentiable in `values`."""
    plain = (values - returns) ** 2
    if not clip:
        return plain / 2
    held = old + (values - old).clamp(-clip, clip)
    return plain.maximum((held - returns) ** 2) / 2


METHOD = Method(
    PPO, data=Document, needs=frozenset({LOGPS, REFERENCE, VALUES}), loss=loss, advantages=advantages
)
