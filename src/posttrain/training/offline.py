"""Rows to examples to global batches: where batches come from when the data is already there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.common.errors import DataError
from posttrain.common.progress import progress
from posttrain.formats.rejects import RowError
from posttrain.models.forest import Branch, Tree, plant, tree_of
from posttrain.records import Row
from posttrain.training.families import onto_shared
from posttrain.training.methods.base import Batch, Example, Method, MethodConfig

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

ENCODE_AT_ONCE = 512


@dataclass
class Encoded:
    """Examples ready for training, how many rows they are, and the rows that could not be used with the
    reason.
    """

    examples: list[Example] = field(default_factory=list)
    rows: int = 0
    rejected: list[tuple[Row, RowError]] = field(default_factory=list)


def encode_rows(
    method: Method,
    cfg: MethodConfig,
    rows: Sequence[Row],
    template: ChatTemplate,
    max_length: int | None,
    label: str,
    quiet: bool = False,
) -> Encoded:
    """Tokenise rows. A row longer than `max_length` tokens is rejected, a document that long is cut into
    pieces. quiet: without a progress bar.
    """
    done = Encoded()
    shown = contextlib.nullcontext() if quiet else progress(f"{label}: tokenise", len(rows), "rows")
    with shown as bar:
        size = max(len(rows), 1) if method.at_once else ENCODE_AT_ONCE
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            before = len(done.rejected)
            for row, made in zip(part, _encoded(method, cfg, part, template), strict=True):
                made = _without_long_loans(made, max_length)
                if isinstance(made, RowError):
                    done.rejected.append((row, made))
                elif max_length and row.kind == "document":  # type: ignore[attr-defined]
                    done.examples += _pieces(made, max_length)
                elif (
                    max_length
                    and (longest := max(len(branch.tokens) for branch in made.branches)) > max_length
                ):
                    reason = (
                        f"longer than {max_length} tokens (max_length, or the model's context): {longest}"
                    )
                    done.rejected.append((row, RowError("", reason)))
                else:
                    done.examples.append(made)
            done.rows += len(part) - (len(done.rejected) - before)
            if bar is not None:
                bar.advance(len(part))
    return done


def _encoded(
    method: Method, cfg: MethodConfig, rows: Sequence[Row], template: ChatTemplate
) -> list[Example | RowError]:
    """Many rows at once, which is fast; where one of them cannot be rendered, row by row to find it."""
    try:
        assert method.encode is not None
        return method.encode(cfg, rows, template)
    except DataError as e:
        if len(rows) == 1:
            return [RowError("prompt", str(e))]
        return [made for row in rows for made in _encoded(method, cfg, [row], template)]


def _without_long_loans(made: Example | RowError, longest: int | None) -> Example | RowError:
    """A row must not be lost because of a branch that is not its own."""
    if isinstance(made, RowError) or not made.borrowed or not longest:
        return made
    own = len(made.branches) - made.borrowed
    kept = [branch for branch in made.branches[own:] if len(branch.tokens) <= longest]
    return Example(made.row, (*made.branches[:own], *kept), made.columns, len(kept), made.family)


def _pieces(example: Example, size: int) -> list[Example]:
    """A long document in pieces that overlap by one token, so that every token but the first is predicted
    once.
    """
    (whole,) = example.branches
    pieces = []
    for a in range(0, max(len(whole.tokens) - 1, 1), size - 1):
        mask = [False, *whole.mask[a + 1 : a + size]]
        pieces.append(Example(example.row, (Branch(whole.tokens[a : a + size], mask),), example.columns))
    return pieces


@dataclass(frozen=True)
class Plan:
    """Which examples make up which global batch, a function of the seed alone.

    sizes: tokens of each example, shared ones once. rows: examples in a batch; tokens: or as many as fit
    in that many. families: of each example, those of one family follow each other; "" for one on its own.
    """

    sizes: tuple[int, ...]
    seed: int
    rows: int
    tokens: int | None = None
    families: tuple[str, ...] = ()

    @cached_property
    def units(self) -> list[list[int]]:
        """What is shuffled: examples, or families of them."""
        if not any(self.families):
            return [[i] for i in range(len(self.sizes))]
        found: dict[str | int, list[int]] = {}
        for i, family in enumerate(self.families):
            found.setdefault(family or i, []).append(i)
        return list(found.values())

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one pass over the data, shuffled. The last one may be smaller."""
        rng = np.random.default_rng((self.seed, number))
        order = [i for unit in rng.permutation(len(self.units)).tolist() for i in self.units[unit]]
        if self.tokens is None:
            return [order[i : i + self.rows] for i in range(0, len(order), self.rows)]
        batches: list[list[int]] = []
        held = 0
        for i in order:
            if not batches or held + self.sizes[i] > self.tokens:
                batches.append([])
                held = 0
            batches[-1].append(i)
            held += self.sizes[i]
        return batches

    def steps(self, epochs: float) -> int:
        """Optimizer steps in so many passes."""
        whole = int(epochs)
        count = sum(len(self.epoch(number)) for number in range(whole))
        return max(1, count + round((epochs - whole) * len(self.epoch(whole))) if epochs > whole else count)

    def batches(self, start: int, stop: int) -> Iterator[list[int]]:
        """Global batches number `start` up to `stop`, pass after pass."""
        at, number = 0, 0
        if self.tokens is None:  # every pass has as many: those before `start` need not be shuffled
            each = -(-len(self.sizes) // self.rows)
            number = start // each
            at = number * each
        while at < stop:
            epoch = self.epoch(number)
            yield from epoch[max(start - at, 0) : stop - at]
            at, number = at + len(epoch), number + 1


def grow(examples: Sequence[Example]) -> list[Tree]:
    """One tree an example."""
    return [tree_of(example.branches) for example in examples]


def make_batch(
    examples: Sequence[Example],
    trees: Sequence[Tree],
    streams: Mapping[str, list[torch.Tensor]],
    along: Mapping[str, list[torch.Tensor]],
    temperature: float,
    device: str,
) -> Batch:
    """Examples with their trees, one each or one for several that follow each other, as one forest.

    streams, along: for each name, one tensor an example.
    """
    if len(trees) < len(examples):
        streams = {name: onto_shared(examples, trees, parts) for name, parts in streams.items()}
    names: list[str] = sorted(examples[0].columns)
    columns: dict[str, Any] = {
        name: torch.tensor([example.columns[name] for example in examples], device=device) for name in names
    }
    return Batch(
        plant(trees).to(device),
        columns,
        {name: torch.cat(parts).to(device) for name, parts in streams.items()},
        {name: torch.cat(parts).to(device) for name, parts in along.items()},
        temperature,
    )
