"""Reward model: Bradley-Terry on comparisons. Llama 2 (arXiv 2307.09288), section 3.2.2, for the margin;
Eisenstein et al. (arXiv 2312.09244), section 2, for centring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from posttrain.formats.rejects import RowError
from posttrain.records import Comparison
from posttrain.training.methods.base import SCORES, Batch, Example, Loss, Method, MethodConfig
from posttrain.training.methods.pairs import encode_pairs, label_of, split_pairs

if TYPE_CHECKING:
    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate


class Reward(MethodConfig):
    """heads: one reward head an aspect; a comparison trains the head of its own aspect.

    margin: how much a unit of the judge's strength widens the wanted gap, m = margin * strength; 0 leaves
    it out.
    centring: weight of (r_chosen + r_rejected)^2, which pins the rewards' mean; 0 leaves it out.
    soft_labels: use the judge's probability where a comparison has one.
    """

    name: Literal["reward"] = "reward"
    heads: Annotated[tuple[str, ...], Field(min_length=1)] = ("overall",)
    margin: float = Field(0.0, ge=0)
    centring: float = Field(0.01, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = False
    recommended_lr: ClassVar[float] = 1e-5

    def aspects(self) -> tuple[str, ...]:
        return self.heads


def encode(cfg: Reward, rows: Sequence[Comparison], template: ChatTemplate) -> list[Example | RowError]:
    examples = encode_pairs(rows, template)
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        if isinstance(example, RowError):
            continue
        if cfg.margin and row.strength is None:
            examples[i] = RowError("strength", "missing, but method.margin asks for it")
        elif row.aspect not in cfg.heads:
            examples[i] = RowError(
                "aspect", f"'{row.aspect}' has no head (method.heads: {', '.join(cfg.heads)})"
            )
        else:
            head = float(cfg.heads.index(row.aspect))
            examples[i] = Example(example.row, example.branches, {**example.columns, "head": head})
    return examples


def loss(cfg: Reward, out: Output, batch: Batch) -> Loss:
    """items = -p log s(d) - (1 - p) log s(-d) + centring (r_c + r_r)^2, with d = r_c - r_r - m: [pairs].

    out.scores: [2 * pairs, heads].
    """
    from torch.nn.functional import logsigmoid

    assert out.scores is not None
    head = batch.columns["head"].long().repeat_interleave(2)
    chosen, rejected = split_pairs(out.scores.gather(1, head[:, None]).squeeze(1))
    gap = chosen - rejected
    if cfg.margin:
        gap = gap - cfg.margin * batch.columns["strength"]
    label = label_of(batch.columns["probability"], cfg.soft_labels, cfg.label_smoothing)
    items = -label * logsigmoid(gap) - (1 - label) * logsigmoid(-gap)
    if cfg.centring:
        items = items + cfg.centring * (chosen + rejected) ** 2
    metrics = {
        "accuracy": (chosen > rejected).float(),
        "reward_margin": (chosen - rejected).detach(),
        "reward_chosen": chosen.detach(),
        "reward_rejected": rejected.detach(),
    }
    return Loss(items, items.new_ones(len(items)), metrics)


METHOD = Method(Reward, data=Comparison, needs=frozenset({SCORES}), encode=encode, loss=loss)
