"""Pretraining: next-token prediction on plain documents. A branch with no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from posttrain.formats.rejects import RowError
from posttrain.records import Document
from posttrain.training.methods.base import LOGPS, Batch, Example, Loss, Method, MethodConfig

if TYPE_CHECKING:
    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate


class Pretrain(MethodConfig):
    """Cross-entropy over every token of a document but the first, in nats."""

    name: Literal["pretrain"] = "pretrain"
    recommended_lr: ClassVar[float] = 1e-3


def encode(cfg: Pretrain, rows: Sequence[Document], template: ChatTemplate) -> list[Example | RowError]:
    from posttrain.models.forest import Branch

    examples: list[Example | RowError] = []
    for row, encoded in zip(rows, template.documents([row.text for row in rows]), strict=True):
        if len(encoded.tokens) < 2:
            examples.append(RowError("text", "fewer than two tokens: nothing to predict"))
            continue
        mask = [False, *encoded.mask[1:]]
        examples.append(Example(row.provenance.id, (Branch(encoded.tokens, mask),)))
    return examples


def loss(cfg: Pretrain, out: Output, batch: Batch) -> Loss:
    """items = -log p(token): [N]; every token weighs the same."""
    assert out.logps is not None
    return Loss(-out.logps, out.logps.new_ones(len(out.logps)))


METHOD = Method(Pretrain, data=Document, needs=frozenset({LOGPS}), encode=encode, loss=loss)
