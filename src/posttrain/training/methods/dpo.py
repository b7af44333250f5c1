"""Direct preference optimisation. Rafailov et al. (arXiv 2305.18290), equation 7, and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from posttrain.formats.rejects import RowError
from posttrain.records import Comparison
from posttrain.training.methods.base import LOGPS, REFERENCE, Batch, Example, Loss, Method, MethodConfig
from posttrain.training.methods.pairs import encode_pairs, label_of, split_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate


class DPO(MethodConfig):
    """loss: sigmoid (DPO), ipo (Azar et al., arXiv 2310.12036, eq. 17, log-ratios averaged over tokens as
    its authors say), hinge (SLiC, arXiv 2305.10425).

    beta: weight of the KL to the reference; 1 / (2 beta) is ipo's target gap, 1 / beta hinge's.
    label_smoothing: probability that a label is wrong (conservative DPO); sigmoid only.
    soft_labels: use the judge's probability where a comparison has one; sigmoid only.
    length_normalised: average log-ratios over tokens instead of summing them (Tülu 3, arXiv 2411.15124,
    eq. 6).
    sft_weight: weight of the chosen response's cross-entropy a token (RPO, arXiv 2404.19733, eq. 1).
    reference_free: leave the reference out (its log-probs count as equal for both).
    first_tokens: only so many of each response's first tokens count, for policy and reference alike; None is
    all. For pairs that differ in how they begin, such as an answer and a refusal (Phi-4, arXiv 2412.08905,
    appendix A.1, takes 5). A pair that begins alike is rejected.
    """

    name: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = False
    length_normalised: bool = False
    sft_weight: float = Field(0.0, ge=0)
    reference_free: bool = False
    first_tokens: int | None = Field(None, ge=1)
    recommended_lr: ClassVar[float] = 1e-6

    def model_post_init(self, _: object) -> None:
        if self.loss != "sigmoid" and (self.label_smoothing or self.soft_labels):
            raise ValueError(f"label_smoothing and soft_labels go with loss: sigmoid, not {self.loss}")


def encode(cfg: DPO, rows: Sequence[Comparison], template: ChatTemplate) -> list[Example | RowError]:
    return encode_pairs(rows, template, cfg.first_tokens)


def loss(cfg: DPO, out: Output, batch: Batch) -> Loss:
    """With u = beta-free log-ratio of chosen minus that of rejected, a pair costs

    sigmoid: -p log s(beta u) - (1 - p) log s(-beta u); ipo: (u - 1 / (2 beta))^2; hinge: max(0, 1 - beta u);
    plus sft_weight times the mean negative log-prob of chosen's tokens. items: [pairs]; out.logps: [N].
    """
    assert out.logps is not None
    forest = batch.forest
    logps = forest.branch_sum(out.logps)
    reference = (
        logps.new_zeros(len(logps)) if cfg.reference_free else forest.branch_sum(batch.streams[REFERENCE])
    )
    ratio = logps - reference
    lengths = forest.lengths.clamp(min=1)
    chosen, rejected = split_pairs(ratio / lengths if cfg.length_normalised or cfg.loss == "ipo" else ratio)
    items = pair_loss(cfg, chosen - rejected, batch.columns["probability"])
    if cfg.sft_weight:
        items = items - cfg.sft_weight * split_pairs(logps / lengths)[0]
    metrics = {
        "accuracy": (chosen > rejected).float(),
        "reward_margin": cfg.beta * (chosen - rejected).detach(),
        "reward_chosen": cfg.beta * chosen.detach(),
        "reward_rejected": cfg.beta * rejected.detach(),
        "logps_chosen": split_pairs(logps.detach())[0],
        "logps_rejected": split_pairs(logps.detach())[1],
    }
    if not cfg.reference_free:
        metrics["kl"] = kl_on_data(out.logps.detach(), batch)
    return Loss(items, items.new_ones(len(items)), metrics)


def pair_loss(cfg: DPO, gap: Tensor, probability: Tensor) -> Tensor:
    """The cost of each pair from its difference of log-ratios, [n] -> [n]; differentiable."""
    from torch.nn.functional import logsigmoid, relu

    if cfg.loss == "ipo":
        return (gap - 1 / (2 * cfg.beta)) ** 2
    if cfg.loss == "hinge":
        return relu(1 - cfg.beta * gap)
    label = label_of(probability, cfg.soft_labels, cfg.label_smoothing)
    return -label * logsigmoid(cfg.beta * gap) - (1 - label) * logsigmoid(-cfg.beta * gap)


def kl_on_data(logps: Tensor, batch: Batch) -> Tensor:
    """Schulman's k3 estimate of the KL to the reference, nats a token, averaged over each pair's two
    responses: [pairs].

    It is taken on the data's tokens, not on samples of the policy: a measure of drift, exact only where
    the two agree.
    """
    back = batch.streams[REFERENCE] - logps
    each = batch.forest.branch_sum(back.exp() - 1 - back) / batch.forest.lengths.clamp(min=1)
    chosen, rejected = split_pairs(each)
    return (chosen + rejected) / 2


METHOD = Method(DPO, data=Comparison, needs=frozenset({LOGPS, REFERENCE}), encode=encode, loss=loss)
