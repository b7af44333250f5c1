"""Examples that begin alike in one tree: what they share is computed once, forward and backward."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice, takewhile

import torch
from torch import Tensor

from posttrain.models.forest import Branch, Tree, plant, tree_of
from posttrain.training.methods.base import Example


def together(examples: Sequence[Example], budget: int) -> list[list[int]]:
    """Which examples stand in one tree: neighbours of one family, while the tree holds at most `budget`
    tokens. Everything keeps its order.
    """
    groups: list[list[int]] = []
    tree = _Growing()
    for i, example in enumerate(examples):
        near = groups[-1] if groups else []
        alike = bool(near and example.family) and examples[near[-1]].family == example.family
        if alike and tree.add(example.branches) <= budget:
            near.append(i)
            continue
        groups.append([i])
        tree = _Growing()
        if example.family:
            tree.add(example.branches)
    return groups


class _Growing:
    """How many tokens a tree holds as branches are added to it, without the tree: what a branch adds is what
    it does not share with the one before or behind it in lexicographic order.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._size = 0

    def add(self, branches: Sequence[Branch]) -> int:
        """The tree's tokens with these branches, too."""
        for branch in branches:
            row = tuple(2 * int(t) + bool(m) for t, m in zip(branch.tokens, branch.mask, strict=True))
            at = bisect_left(self._rows, row)
            beside = self._rows[max(at - 1, 0) : at + 1]
            self._size += len(row) - max((_shared(row, other) for other in beside), default=0)
            self._rows.insert(at, row)
        return self._size


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """From the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def tree_of_all(examples: Sequence[Example]) -> Tree:
    """One tree with the branches of all examples, in their order."""
    return tree_of([branch for example in examples for branch in example.branches])


def onto_shared(
    examples: Sequence[Example],
    trees: Sequence[Tree],
    parts: Sequence[Tensor],  # [N_i] each, a number a wanted token of an example's own tree
) -> list[Tensor]:  # [N_t] each, of the trees that the examples stand in
    """Streams of examples as streams of their trees. A wanted token that several share has one number: they
    have computed it from the same tokens.
    """
    waiting = iter(zip(examples, parts, strict=True))
    found = []
    for tree in trees:
        held: list[tuple[Example, Tensor]] = []
        while sum(len(example.branches) for example, _ in held) < len(tree.leaves):
            held += islice(waiting, 1)
        if len(held) == 1:
            found.append(held[0][1])
            continue
        along = [part[plant([tree_of(example.branches)]).token_of] for example, part in held]
        forest = plant([tree])
        onto = torch.empty(len(forest.targets), dtype=along[0].dtype)
        onto[forest.token_of] = torch.cat(along)
        found.append(onto)
    return found
