"""Group-relative policy optimisation. DeepSeekMath (arXiv 2402.03300), equation 3, and its variants, which
differ in a number each: DAPO (arXiv 2503.14476), Dr. GRPO (arXiv 2503.20783), GSPO (arXiv 2507.18071)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from posttrain.records import Document
from posttrain.training.methods.base import LOGPS, REFERENCE, Batch, Loss, Method
from posttrain.training.methods.policy import Normalise, PolicyConfig, policy_items, weighed

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.training.advantages import Rollout


class GRPO(PolicyConfig):
    """scale: divide a group's advantages by its standard deviation; Dr. GRPO leaves it out, for it changes
    what is optimised. ratio: of each token, or of the whole answer (GSPO).
    """

    name: Literal["grpo"] = "grpo"
    kl: float = Field(0.04, ge=0)
    kl_in: Literal["reward", "loss"] = "loss"
    scale: bool = True
    ratio: Literal["token", "sequence"] = "token"
    normalise: Normalise = "responses"
    recommended_lr: ClassVar[float] = 1e-6
    least_samples: ClassVar[int] = 2


def advantages(cfg: GRPO, rollout: Rollout) -> dict[str, Tensor]:
    """One advantage an answer, at each of its tokens: [M]."""
    from posttrain.training.advantages import kl_penalised, over_mean

    rewards = kl_penalised(rollout) if cfg.kl_in == "reward" else rollout.rewards
    return {"advantages": rollout.per_token(over_mean(rewards, rollout.groups, cfg.scale))}


def loss(cfg: GRPO, out: Output, batch: Batch) -> Loss:
    """Clipped surrogate and KL at each token, normalised as configured. out.logps: [N]."""
    assert out.logps is not None
    logps = out.logps[batch.forest.token_of]
    items, metrics = policy_items(cfg, logps, batch, cfg.ratio == "sequence")
    return Loss(*weighed(cfg.normalise, items, metrics, batch.forest))


METHOD = Method(GRPO, data=Document, needs=frozenset({LOGPS, REFERENCE}), loss=loss, advantages=advantages)
