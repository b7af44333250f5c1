"""The decoder of models that run as forests: prompts are read without padding, their cache is held once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from posttrain.engines.prefill import next_logits, prefill
from posttrain.engines.prefixes import holders
from posttrain.engines.shapes import filled, longest, whole_rows
from posttrain.engines.wave import Wave
from posttrain.models.attention import unmasked
from posttrain.models.forward import trunk


@final
class ForestDecoder:
    """Waves of rows of any lengths, entering and leaving at any time, take a token each in one forward."""

    joins = True  # a wave may begin while others are under way

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        end = longest(hf)
        self._last = None if end is None else end - 1  # rows that are over, and stay, go no further

    def begin(self, prompts: Sequence[Sequence[int]], slot: list[int], rows: int) -> tuple[Wave, Tensor]:
        """Rows that continue prompts[slot[r]], and more up to `rows` that nobody wants.

        A prompt that another begins with takes that one's slot and sees less of it. Also logits [R, V] of
        each row's first token.
        """
        holder = holders(prompts)
        held = list(dict.fromkeys(holder[s] for s in slot))
        place = {prompt: at for at, prompt in enumerate(held)}
        sees = [(place[holder[s]], len(prompts[s])) for s in slot]
        ends = list(dict.fromkeys(sees))
        slots, hidden = prefill(self.hf, [prompts[i] for i in held], ends)
        rounded = filled([*range(len(ends))], whole_rows(len(ends)))
        hidden = hidden.index_select(0, torch.tensor(rounded, device=hidden.device))
        at = {end: e for e, end in enumerate(ends)}
        index = torch.tensor(filled([at[end] for end in sees], rows), device=hidden.device)
        logits = next_logits(self.hf, hidden).index_select(0, index)
        wave = Wave(slots, [s for s, _ in sees], [tokens for _, tokens in sees], rows, hidden.device)
        return wave, logits

    def step(self, waves: Sequence[Wave], tokens: Tensor) -> Tensor:
        """Append tokens [R] to all rows of `waves`, in order; logits [R, V] of what comes after."""
        for wave in waves:
            wave.begin()
        positions = torch.cat([wave.positions for wave in waves])
        if self._last is not None:
            positions.clamp_(max=self._last)
        with unmasked():
            out = trunk(self.hf)(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                cells=_Together(waves),
            )
        for wave in waves:
            wave.end()
        return next_logits(self.hf, out.last_hidden_state[0])


@dataclass(frozen=True)
class _Together:
    """Attention of all waves' rows, each among its own."""

    waves: Sequence[Wave]

    def attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        if len(self.waves) == 1:
            return self.waves[0].attend(layer, q, k, v, scale, window)[None]
        sizes = [len(wave) for wave in self.waves]
        parts = zip(self.waves, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([wave.attend(layer, q, k, v, scale, window) for wave, q, k, v in parts])[None]
