"""REINFORCE with the other answers' mean as baseline. Ahmadian et al. (arXiv 2402.14740), equation 8; Kool et
al. 2019."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from posttrain.records import Document
from posttrain.training.methods.base import LOGPS, REFERENCE, Batch, Loss, Method
from posttrain.training.methods.policy import Normalise, PolicyConfig, policy_items, weighed

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.training.advantages import Rollout


class RLOO(PolicyConfig):
    """The whole answer is one action: its log-prob is the sum over its tokens, and the KL to the reference is
    taken off its reward. With several updates a rollout the ratio of each token is clipped as in PPO.
    """

    name: Literal["rloo"] = "rloo"
    normalise: Normalise = "sum"
    recommended_lr: ClassVar[float] = 1e-6
    least_samples: ClassVar[int] = 2


def advantages(cfg: RLOO, rollout: Rollout) -> dict[str, Tensor]:
    """One advantage an answer, at each of its tokens: [M]."""
    from posttrain.training.advantages import kl_penalised, over_others

    rewards = kl_penalised(rollout) if cfg.kl_in == "reward" else rollout.rewards
    return {"advantages": rollout.per_token(over_others(rewards, rollout.groups))}


def loss(cfg: RLOO, out: Output, batch: Batch) -> Loss:
    """-A · log π of the answer, through the clipped ratio. out.logps: [N]."""
    assert out.logps is not None
    items, metrics = policy_items(cfg, out.logps[batch.forest.token_of], batch)
    return Loss(*weighed(cfg.normalise, items, metrics, batch.forest))


METHOD = Method(RLOO, data=Document, needs=frozenset({LOGPS, REFERENCE}), loss=loss, advantages=advantages)
