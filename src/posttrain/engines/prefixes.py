"""Prompts that are prefixes of one another: which of them need keys and values of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from posttrain.engines.protocol import Completion, Engine, SamplingParams


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


def generate_each(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    params: SamplingParams,
    label: str = "sample",
) -> list[list[Completion]]:
    """Like `Engine.generate`, with counts[i] completions of prompt i in place of `params.n`.

    A prompt is named once for each of its completions: an engine that shares what prompts have in common
    reads it once all the same.
    """
    one = params.model_copy(update={"n": 1})
    repeated = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    said = iter(engine.generate(repeated, one, label))
    return [[next(said)[0] for _ in range(count)] for count in counts]
