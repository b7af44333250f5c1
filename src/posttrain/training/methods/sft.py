"""Supervised fine-tuning: cross-entropy on what the assistant writes. InstructGPT (arXiv 2203.02155),
section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from posttrain.formats.rejects import RowError
from posttrain.records import Demonstration
from posttrain.training.methods.base import LOGPS, Batch, Example, Loss, Method, MethodConfig

if TYPE_CHECKING:
    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate


class SFT(MethodConfig):
    """turns: which assistant turns of a conversation are learned, all of them or the last."""

    name: Literal["sft"] = "sft"
    turns: Literal["all", "last"] = "all"
    recommended_lr: ClassVar[float] = 2e-5


def encode(cfg: SFT, rows: Sequence[Demonstration], template: ChatTemplate) -> list[Example | RowError]:
    from posttrain.models.forest import Branch

    encoded = template.conversations([(row.prompt, row.response) for row in rows], cfg.turns)
    return [
        Example(row.provenance.id, (Branch(e.tokens, e.mask),))
        if any(e.mask)
        else RowError("response", "no tokens")
        for row, e in zip(rows, encoded, strict=True)
    ]


def loss(cfg: SFT, out: Output, batch: Batch) -> Loss:
    """items = -log p(token): [N]; every supervised token of the global batch weighs the same."""
    assert out.logps is not None
    return Loss(-out.logps, out.logps.new_ones(len(out.logps)))


METHOD = Method(SFT, data=Demonstration, needs=frozenset({LOGPS}), encode=encode, loss=loss)
