"""Prompts read once, through one forest: their keys and values are kept, their last states returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.engines.shapes import filled, whole_rows, whole_tokens
from posttrain.models.attention import along_paths, unmasked
from posttrain.models.forest import Branch, Forest, paths_of, plant, tree_of
from posttrain.models.forward import causal_lm, trunk

# Prompt tokens of one forward: bounds its activations, and matrix products gain no more from being larger.
_PREFILL = 4096


@dataclass
class Slots:
    """Keys and values of S prompts, each held once, by layer: [S, G, P, D] and [S, G, P, E].

    lengths: [S] tokens of each prompt; what a slot holds beyond them only rounds its shape up. A row names a
    slot and how many of its tokens it sees.
    """

    lengths: list[int]
    keys: dict[nn.Module, Tensor] = field(default_factory=dict)
    values: dict[nn.Module, Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Tokens a slot has room for (P)."""
        return whole_tokens(max(self.lengths))

    def select(self, kept: list[int], device: torch.device) -> None:
        """Keep these slots, in this order."""
        self.lengths = [self.lengths[s] for s in kept]
        index = torch.tensor(filled(kept, whole_rows(len(kept))), device=device)
        for held in (self.keys, self.values):
            for layer, states in held.items():
                held[layer] = states[:, :, : self.width].index_select(0, index)

    def _room(self, held: dict[nn.Module, Tensor], layer: nn.Module, states: Tensor) -> Tensor:
        if layer not in held:
            slots = whole_rows(len(self.lengths))
            held[layer] = states.new_zeros(slots, states.shape[1], self.width, states.shape[-1])
        return held[layer]

    def keep(self, layer: nn.Module, key: Tensor, value: Tensor, first: int, paths: list[Tensor]) -> None:
        """Copy the states along `paths` into the slots from `first` on. key, value: [1, G, T, D]."""
        for held, states in ((self.keys, key), (self.values, value)):
            room = self._room(held, layer, states)
            for slot, path in enumerate(paths, first):
                room[slot, :, : len(path)] = states[0].index_select(1, path)


@dataclass(frozen=True)
class _Reading:
    """What the attention of a prefill does: as in any forest, and the keys and values are kept."""

    forest: Forest
    paths: list[Tensor]
    slots: Slots
    first: int

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.slots.keep(layer, key, value, self.first, self.paths)
        return along_paths(query, key, value, self.forest.layout, scale, window)


def prefill(
    hf: Any, prompts: Sequence[Sequence[int]], ends: Sequence[tuple[int, int]]
) -> tuple[Slots, Tensor]:
    """Read each prompt once, and what several share from the start once for them all.

    ends: (prompt, tokens), the beginnings that a state is wanted of. Returns the prompts' keys and values,
    and the last hidden state of each of `ends` [E, hidden].
    """
    slots = Slots([len(prompt) for prompt in prompts])
    states: list[Tensor] = []
    order: list[int] = []
    for first, last in _chunks(slots.lengths):
        branches = [Branch(prompt, [False] * len(prompt)) for prompt in prompts[first:last]]
        forest = plant([tree_of(branches)]).to(hf.device)
        cells = _Reading(forest, paths_of(forest), slots, first)
        with unmasked():
            out = trunk(hf)(
                input_ids=forest.tokens[None],
                position_ids=forest.positions[None],
                use_cache=False,
                cells=cells,
            )
        here = [e for e, (prompt, _) in enumerate(ends) if first <= prompt < last]
        at = [cells.paths[prompt - first][tokens - 1] for prompt, tokens in (ends[e] for e in here)]
        if at:
            states.append(out.last_hidden_state[0].index_select(0, torch.stack(at)))
            order += here
    hidden = torch.cat(states)
    return slots, hidden.new_empty(hidden.shape).index_copy_(0, torch.tensor(order, device=hf.device), hidden)


def next_logits(hf: Any, hidden: Tensor) -> Tensor:
    """The LM head on hidden states: [R, hidden] to [R, V]."""
    model = causal_lm(hf)
    logits = model.get_output_embeddings()(hidden)
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _chunks(lengths: list[int]) -> list[tuple[int, int]]:
    """Runs of prompts that are read in one forward."""
    cuts, held = [0], 0
    for i, length in enumerate(lengths):
        if held and held + length > _PREFILL:
            cuts.append(i)
            held = 0
        held += length
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))
