"""Prompts that are prefixes of one another: which of them need keys and values of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def holders(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt the one whose tokens begin with its own and that begins no longer one; itself where no
    other does.

    In lexicographic order a prompt stands right before those that go on from it.
    """
    whole = [tuple(prompt) for prompt in prompts]
    holder = list(range(len(whole)))
    order = sorted(holder, key=whole.__getitem__)
    for after, i in itertools.pairwise(reversed(order)):
        if whole[after][: len(whole[i])] == whole[i]:
            holder[i] = holder[after]
    return holder
