"""Trees of token segments, and forests that pack them: a prompt shared by many responses is held once.

A tree is a trie. Its segments lie in depth-first order, so the descendants of a token are one contiguous
range and the whole visibility rule is `k <= q < end[k]`: token q sees token k iff k stands on q's own path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from posttrain.models.layout import Layout, filler


@dataclass(frozen=True)
class Branch:
    """One row as a method sees it: the whole path of tokens, and for which of them a log-prob is wanted.

    tokens: [L] token ids. mask: [L] bool; the first token has nothing before it and cannot be wanted.
    """

    tokens: Sequence[int]
    mask: Sequence[bool]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.mask):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.mask)} mask entries")
        if not len(self.tokens):
            raise ValueError("a branch of no tokens")
        if self.mask[0]:
            raise ValueError("the first token of a branch has nothing before it that could predict it")


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a branch point. parent: index of the segment before it, -1 for a root."""

    parent: int
    tokens: np.ndarray  # [S] int64
    mask: np.ndarray  # [S] bool


@dataclass(frozen=True)
class Tree:
    """A trie of segments in depth-first order. leaves[b] is the segment at whose end branch b ends."""

    segments: tuple[Segment, ...]
    leaves: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Tokens held, shared ones once."""
        return sum(len(segment.tokens) for segment in self.segments)


def tree_of(branches: Sequence[Branch]) -> Tree:
    """Merge branches into a trie: what two of them share from the start (tokens and mask) is held once.

    The order of `branches` is kept in `Tree.leaves`; equal branches share a leaf.
    """
    tokens = [np.asarray(branch.tokens, dtype=np.int64) for branch in branches]
    masks = [np.asarray(branch.mask, dtype=bool) for branch in branches]
    segments: list[Segment] = []
    leaves = [-1] * len(branches)
    todo = [(list(group), 0, -1) for group in reversed(_by_next(range(len(branches)), tokens, masks, 0))]
    while todo:
        group, start, parent = todo.pop()
        end = _shared_until(group, tokens, masks, start)
        first = group[0]
        segments.append(Segment(parent, tokens[first][start:end], masks[first][start:end]))
        here = len(segments) - 1
        for b in group:
            if len(tokens[b]) == end:
                leaves[b] = here
        longer = [b for b in group if len(tokens[b]) > end]
        todo += [(child, end, here) for child in reversed(_by_next(longer, tokens, masks, end))]
    return Tree(tuple(segments), tuple(leaves))


def _shared_until(group: list[int], tokens: list[np.ndarray], masks: list[np.ndarray], start: int) -> int:
    """First position at which the group's branches no longer all agree."""
    end = min(len(tokens[b]) for b in group)
    first = group[0]
    for b in group[1:]:
        differ = (tokens[b][start:end] != tokens[first][start:end]) | (
            masks[b][start:end] != masks[first][start:end]
        )
        if differ.any():
            end = start + int(differ.argmax())
    return end


def _by_next(
    group: Iterable[int], tokens: list[np.ndarray], masks: list[np.ndarray], at: int
) -> list[list[int]]:
    """Split a group by its next token (and that token's mask), in order of first appearance."""
    found: dict[tuple[int, bool], list[int]] = {}
    for b in group:
        found.setdefault((int(tokens[b][at]), bool(masks[b][at])), []).append(b)
    return list(found.values())


@dataclass(frozen=True)
class Forest:
    """Trees laid end to end: T tokens, N wanted log-probs, B branches, M (wanted token, branch) pairs.

    A token shared by two branches is one of the N but two of the M; pairs go branch by branch, in path order.
    Behind the T tokens may lie a few that belong to no branch and only round the shape up (`layout.filler`).
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64, counted along the path
    end: Tensor  # [T] int64, one past the last descendant of each token's segment
    sources: Tensor  # [N] int64, index of the token that predicts each wanted token
    targets: Tensor  # [N] int64, id of each wanted token
    token_of: Tensor  # [M] int64, which of the N
    branch_of: Tensor  # [M] int64, which of the B
    tails: Tensor  # [B] int64, index of the last token of each branch
    tree_of: Tensor  # [B] int64, which tree each branch belongs to
    layout: Layout

    @cached_property
    def size(self) -> int:
        """Tokens held, those that only round up left out."""
        return max(stop for _, stop, _, _ in self.layout.segments)

    @property
    def branches(self) -> int:
        return len(self.tails)

    @cached_property
    def lengths(self) -> Tensor:
        """[B] wanted tokens on each branch, float32."""
        ones = torch.ones(len(self.branch_of), device=self.tokens.device)
        return torch.zeros(self.branches, device=self.tokens.device).index_add(0, self.branch_of, ones)

    def branch_sum(self, per_token: Tensor) -> Tensor:
        """Sum a quantity over the wanted tokens of each branch. per_token: [N] -> [B]."""
        zeros = per_token.new_zeros(self.branches)
        return zeros.index_add(0, self.branch_of, per_token[self.token_of])

    def to(self, device: torch.device | str) -> Forest:
        """The same forest on another device."""
        if self.tokens.device == torch.device(device):
            return self
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "lengths"
        }
        return Forest(**moved, layout=self.layout.to(device))


def plant(trees: Sequence[Tree]) -> Forest:
    """Lay trees end to end."""
    starts: list[list[int]] = []
    total = 0
    for tree in trees:
        starts.append([])
        for segment in tree.segments:
            starts[-1].append(total)
            total += len(segment.tokens)
    held = total + filler(total)
    tokens = np.zeros(held, np.int64)
    positions = np.zeros(held, np.int64)
    end = np.arange(1, held + 1)
    index_of = np.full(held, -1, np.int64)  # token -> which of the N
    sources: list[np.ndarray] = []
    bounds: list[tuple[int, int, int, int]] = []  # start, stop, end of descendants, parent segment (global)
    pairs_token: list[np.ndarray] = []
    pairs_branch: list[np.ndarray] = []
    tails: list[int] = []
    owners: list[int] = []
    wanted = 0
    for t, tree in enumerate(trees):
        first_segment = len(bounds)
        ends = _subtree_ends(tree, starts[t])
        for s, segment in enumerate(tree.segments):
            a, size = starts[t][s], len(segment.tokens)
            parent = segment.parent
            before = starts[t][parent] + len(tree.segments[parent].tokens) - 1 if parent >= 0 else -1
            depth = int(positions[before]) + 1 if parent >= 0 else 0
            tokens[a : a + size] = segment.tokens
            positions[a : a + size] = np.arange(depth, depth + size)
            end[a : a + size] = ends[s]
            at = a + np.flatnonzero(segment.mask)
            index_of[at] = np.arange(wanted, wanted + len(at))
            wanted += len(at)
            sources.append(np.where(at == a, before, at - 1))
            bounds.append((a, a + size, ends[s], first_segment + parent if parent >= 0 else -1))
        for leaf in tree.leaves:
            path = _path(tree, leaf)
            ids = [index_of[starts[t][s] : starts[t][s] + len(tree.segments[s].tokens)] for s in path]
            found = np.concatenate(ids)
            found = found[found >= 0]
            pairs_token.append(found)
            pairs_branch.append(np.full(len(found), len(tails), np.int64))
            tails.append(starts[t][leaf] + len(tree.segments[leaf].tokens) - 1)
            owners.append(t)
    source = np.concatenate(sources) if sources else np.empty(0, np.int64)
    chosen = np.flatnonzero(index_of >= 0)
    return Forest(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        end=torch.from_numpy(end),
        sources=torch.from_numpy(source),
        targets=torch.from_numpy(tokens[chosen]),
        token_of=torch.from_numpy(np.concatenate(pairs_token)),
        branch_of=torch.from_numpy(np.concatenate(pairs_branch)),
        tails=torch.tensor(tails),
        tree_of=torch.tensor(owners),
        layout=Layout(tuple(bounds), torch.from_numpy(positions), torch.from_numpy(end)),
    )


def _subtree_ends(tree: Tree, starts: list[int]) -> list[int]:
    """One past the last token of each segment's descendants; depth-first order makes them contiguous."""
    ends = [start + len(segment.tokens) for start, segment in zip(starts, tree.segments, strict=True)]
    for s in range(len(ends) - 1, -1, -1):
        parent = tree.segments[s].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[s])
    return ends


def _path(tree: Tree, leaf: int) -> list[int]:
    """Segments from the root to `leaf`."""
    path = [leaf]
    while tree.segments[path[-1]].parent >= 0:
        path.append(tree.segments[path[-1]].parent)
    return path[::-1]


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of trees, grouped in order so that no group holds more than `budget` tokens (a larger tree
    stands alone).
    """
    groups: list[list[int]] = []
    held = 0
    for i, size in enumerate(sizes):
        if not groups or held + size > budget:
            groups.append([])
            held = 0
        groups[-1].append(i)
        held += size
    return groups


def paths_of(forest: Forest) -> list[Tensor]:
    """Token indices along the path of each branch, for the dense fallback: list of [L_b] int64."""
    position = forest.positions.cpu().numpy()
    end = forest.end.cpu().numpy()
    paths = []
    for tail in forest.tails.tolist():
        before = np.arange(tail - position[tail], tail + 1) if _unbranched(position, tail) else None
        if before is None:
            candidates = np.arange(0, tail + 1)
            before = candidates[end[: tail + 1] > tail]
        paths.append(torch.from_numpy(before).to(forest.tokens.device))
    return paths


def _unbranched(position: np.ndarray, tail: int) -> bool:
    """Whether the tokens just before `tail` are its whole path."""
    start = tail - position[tail]
    return bool(start >= 0 and (position[start : tail + 1] == np.arange(position[tail] + 1)).all())
