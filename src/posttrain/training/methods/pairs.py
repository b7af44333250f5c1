"""What the pairwise objectives share: a comparison as two branches, and its numbers as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.formats.rejects import RowError
from posttrain.records import Comparison
from posttrain.training.methods.base import Example

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.template import ChatTemplate


def encode_pairs(rows: Sequence[Comparison], template: ChatTemplate) -> list[Example | RowError]:
    """Chosen and rejected after their one prompt. Token-exact rows go as they are; text is tokenised here
    once.

    columns: strength, probability (NaN where the judge gave none).
    """
    from posttrain.models.forest import Branch

    exact = [row.prompt_token_ids is not None for row in rows]
    written = [row for row, is_exact in zip(rows, exact, strict=True) if not is_exact]
    prompts = iter(template.prompts([row.prompt.messages for row in written]))
    responses = iter(
        template.responses([(row.prompt.messages, r) for row in written for r in (row.chosen, row.rejected)])
    )
    examples: list[Example | RowError] = []
    for row in rows:
        if row.prompt_token_ids is None:
            prompt, chosen, rejected = next(prompts), next(responses), next(responses)
        elif row.chosen.token_ids is None or row.rejected.token_ids is None:
            examples.append(RowError("chosen", "prompt_token_ids without token_ids of both responses"))
            continue
        else:
            prompt = list(row.prompt_token_ids)
            chosen, rejected = list(row.chosen.token_ids), list(row.rejected.token_ids)
        if chosen == rejected:
            examples.append(RowError("rejected", "chosen and rejected are the same tokens"))
            continue
        branches = tuple(
            Branch(prompt + response, [False] * len(prompt) + [True] * len(response))
            for response in (chosen, rejected)
        )
        columns = {
            "strength": math.nan if row.strength is None else row.strength,
            "probability": math.nan if row.probability is None else row.probability,
        }
        examples.append(Example(row.provenance.id, branches, columns))
    return examples


def split_pairs(per_branch: Tensor) -> tuple[Tensor, Tensor]:
    """[2n, ...] in the order chosen, rejected, chosen, … -> two of [n, ...]."""
    return per_branch[0::2], per_branch[1::2]


def label_of(probability: Tensor, soft: bool, smoothing: float) -> Tensor:
    """The probability that chosen is better, [n]: the judge's own where it is wanted and given, else 1 -
    smoothing.
    """
    hard = probability.new_full(probability.shape, 1.0 - smoothing)
    return hard.where(probability.isnan(), probability) if soft else hard
