"""How a forest's attention is cut into dense jobs: query rows times the keys of their path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# query rows of one job at most: bounds the scores held at once and skips most of the causal upper half
ROWS = 256
JOB = (
    16_000  # what starting a job costs, in query-key pairs: 0.1 ms against about 160 pairs a µs on two cores
)


# Matrix kernels are made for each new shape (about 1 ms and 0.7 MB each, kept by the library): jobs are
# cut to multiples of STEP and forests to multiples of STRIDE, so that a run sees a few hundred shapes and
# not one a row.
STEP, STRIDE = 32, 64


@dataclass(frozen=True)
class Job:
    """Query rows [start, stop) against the tokens in `keys` (half-open ranges, in path order).

    Rows from `stop` up to `reach`, and what the last range holds beyond `stop`, only round the shape up.
    """

    start: int
    stop: int
    reach: int
    keys: tuple[tuple[int, int], ...]


def filler(size: int) -> int:
    """Tokens to lay behind `size` of them: up to a multiple of STRIDE, and enough for the last job to
    round up.
    """
    return -(size + STEP - 1) % STRIDE + STEP - 1


@dataclass(frozen=True)
class Layout:
    """Segments of a forest as (start, stop, end of descendants, parent), and what masks are made from.

    positions, end: [T] as in Forest.
    """

    segments: tuple[tuple[int, int, int, int], ...]
    positions: Tensor
    end: Tensor
    _jobs: list[Job] = field(default_factory=list, compare=False)
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict, compare=False)
    _blocks: dict[int | None, Any] = field(default_factory=dict, compare=False)

    def jobs(self) -> list[Job]:
        """The cheapest cut: a subtree is one dense job, or its top segment is one and each child is cut in
        turn.
        """
        if not self._jobs:
            self._jobs.extend(_cut(self.segments))
        return self._jobs

    def mask(self, index: int, window: int | None) -> Tensor | None:
        """Additive mask of job `index`, float32 [rows, keys]: 0 where visible, -inf elsewhere; None if all
        is visible.
        """
        if (index, window) not in self._masks:
            self._masks[index, window] = self._make_mask(self.jobs()[index], window)
        return self._masks[index, window]

    def _make_mask(self, job: Job, window: int | None) -> Tensor | None:
        device = self.end.device
        q = torch.arange(job.start, job.reach, device=device)[:, None]
        k = torch.cat([torch.arange(a, b, device=device) for a, b in job.keys])[None, :]
        # a row that only rounds up sees the first key, for its softmax to be a number
        seen = torch.where(q < job.stop, visible(q, k, self.end, self.positions, window), k == k[0, 0])
        if bool(seen.all()):
            return None
        return torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's form of the same rule, kept for all layers with this window."""
        if window not in self._blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            end, positions, total = self.end, self.positions, len(self.end)

            def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return visible(q, k, end, positions, window)

            self._blocks[window] = create_block_mask(rule, None, None, total, total, device=str(end.device))
        return self._blocks[window]

    def to(self, device: torch.device | str) -> Layout:
        return Layout(self.segments, self.positions.to(device), self.end.to(device))


def visible(q: Tensor, k: Tensor, end: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Whether token q sees token k: k on q's path, and within `window` positions where one is set."""
    seen = (k <= q) & (q < end[k])
    if window is not None:
        seen = seen & (positions[q] - positions[k] < window)
    return seen


def _cut(segments: tuple[tuple[int, int, int, int], ...]) -> list[Job]:
    children: list[list[int]] = [[] for _ in segments]
    before = [0] * len(segments)  # tokens on the path above each segment
    for s, (_, _, _, parent) in enumerate(segments):
        if parent >= 0:
            children[parent].append(s)
            before[s] = before[parent] + segments[parent][1] - segments[parent][0]
    whole = [False] * len(segments)
    cost = [0.0] * len(segments)
    for s in range(len(segments) - 1, -1, -1):
        start, stop, end, _ = segments[s]
        dense = _rows_cost(end - start, before[s])
        split = _rows_cost(stop - start, before[s]) + sum(cost[child] for child in children[s])
        whole[s] = dense <= split
        cost[s] = min(dense, split)
    jobs: list[Job] = []
    todo = [s for s, segment in enumerate(segments) if segment[3] < 0][::-1]
    while todo:
        s = todo.pop()
        start, stop, end, _ = segments[s]
        above = _above(segments, s)
        last = end if whole[s] else stop
        for a in range(start, last, ROWS):
            b = min(a + ROWS, last)
            held = sum(y - x for x, y in above) + b - start
            reach = a - (a - b) // STEP * STEP
            jobs.append(Job(a, b, reach, _join((*above, (start, b + -held % STEP)))))
        if not whole[s]:
            todo += children[s][::-1]
    return jobs


def _rows_cost(rows: int, above: int) -> float:
    """Query-key pairs computed for `rows` causal rows below `above` tokens, cut into blocks, plus what
    jobs cost.
    """
    full, rest = divmod(rows, ROWS)
    pairs = rows * above + ROWS * ROWS * full * (full + 1) / 2 + rest * rows
    return pairs + JOB * (full + bool(rest))


def _above(segments: tuple[tuple[int, int, int, int], ...], s: int) -> tuple[tuple[int, int], ...]:
    """Ranges of the tokens on the path above segment s."""
    ranges: list[tuple[int, int]] = []
    parent = segments[s][3]
    while parent >= 0:
        ranges.append(segments[parent][:2])
        parent = segments[parent][3]
    return tuple(reversed(ranges))


def _join(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Adjoining ranges made one: a job with a single range reads its keys without a copy."""
    joined = [ranges[0]]
    for a, b in ranges[1:]:
        if joined[-1][1] == a:
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return tuple(joined)
