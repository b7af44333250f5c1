"""What the units of a reward model mean: its rewards' mean and spread over what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from posttrain.models.forest import tree_of
from posttrain.models.forward import SCORES, score_trees
from posttrain.models.heads import Standard
from posttrain.training.methods.base import Example, Method

if TYPE_CHECKING:
    from posttrain.models.load import Model

MOST_ROWS = 4096  # the error of the mean is then under two hundredths of a standard deviation


def standards_of(
    model: Model, method: Method, examples: Sequence[Example], budget: int, label: str
) -> dict[str, Standard]:
    """For each reward head that `method` trains, over the responses of at most MOST_ROWS rows, spread evenly;
    none for a head that gives every response the same. What was known before training is void.
    """
    if model.reward_head is None or SCORES not in method.needs:
        return {}
    step = max(1, -(-len(examples) // MOST_ROWS))
    trees = [tree_of(example.branches) for example in examples[::step]]
    needs = frozenset({SCORES})
    found = {
        i: out.scores
        for i, _, out in score_trees(model, trees, needs, budget=budget, label=f"{label}: rewards' units")
    }
    scores = torch.cat([each for _, each in sorted(found.items()) if each is not None]).double()
    spread, mean = torch.std_mean(scores, 0, correction=0)
    return {
        aspect: Standard(m, s, len(scores))
        for aspect, m, s in zip(model.aspects, mean.tolist(), spread.tolist(), strict=True)
        if s > 0
    }
