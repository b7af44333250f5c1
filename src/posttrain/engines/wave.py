"""Rows that entered together: keys and values of their prompts, each held once, and the rows' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from posttrain.engines.prefill import Slots
from posttrain.engines.shapes import whole_rows, whole_tokens


class Wave:
    """R rows that have said equally many tokens of their own. A row is a slot, how much of it the row sees,
    and the row's own tokens.

    The queries of all rows of a prompt meet its keys in one product; one softmax spans the prompt's part and
    the row's own. slots: shared by rows. slot: which of them each row continues. seen: how many of its tokens
    the row sees. rows: R; those beyond the ones that `slot` names only round their number up.
    """

    def __init__(
        self, slots: Slots, slot: Sequence[int], seen: Sequence[int], rows: int, device: torch.device
    ) -> None:
        self.slots = slots
        self.device = device
        self.said = 0
        self.seen = torch.tensor([*seen, *[0] * (rows - len(seen))], device=device)
        self._keys: dict[nn.Module, Tensor] = {}  # [R, G, T, D]
        self._values: dict[nn.Module, Tensor] = {}
        self._biases: dict[int | None, Tensor] = {}
        self._seat(list(slot))

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def positions(self) -> Tensor:
        """[R] of the token that comes next."""
        return self.seen + self.said

    @property
    def cells(self) -> int:
        """Tokens that keys and values are held of, in each layer."""
        prompts = next(iter(self.slots.keys.values()))
        own = next(iter(self._keys.values()), None)
        return prompts.shape[0] * prompts.shape[2] + (0 if own is None else own.shape[0] * own.shape[2])

    def select(self, rows: list[int], wanted: int) -> None:
        """Keep these rows, in this order, and the slots that the first `wanted` need; the others only round
        their number up.
        """
        index = torch.tensor(rows, device=self.device)
        self.seen = self.seen.index_select(0, index)
        self.seen[wanted:] = 0
        for held in (self._keys, self._values):
            for layer, states in held.items():
                held[layer] = states.index_select(0, index)
        slot = [self.slot[row] for row in rows[:wanted]]
        used = sorted(set(slot))
        if whole_rows(len(used)) < whole_rows(len(self.slots.lengths)):
            self.slots.select(used, self.device)
            slot = [used.index(s) for s in slot]
        self._seat(slot)

    def _seat(self, slot: list[int]) -> None:
        """Give each row a place among its slot's rows: [slots, places] is how they meet the prompts."""
        self.slot = slot
        taken: Counter[int] = Counter()
        places = []
        for s in slot:
            places.append(taken[s])
            taken[s] += 1
        self._places = whole_rows(max(taken.values()))
        seats = [s * self._places + place for s, place in zip(slot, places, strict=True)]
        straight = seats == list(range(len(slot)))
        self._seats = None if straight else torch.tensor(seats, device=self.device)

    def begin(self) -> None:
        """Call before the forward that takes each row's next token."""
        self._biases = {}
        self._room = whole_tokens(self.said + 1)

    def end(self) -> None:
        """Call after it."""
        self.said += 1

    def attend(
        self,
        layer: nn.Module,
        query: Tensor,  # [R, H, D]
        key: Tensor,  # [R, G, D]
        value: Tensor,  # [R, G, E]
        scale: float,
        window: int | None,
    ) -> Tensor:  # [R, H, E]
        rows, heads, _ = query.shape
        groups = key.shape[1]
        own_keys, own_values = self._write(self._keys, layer, key), self._write(self._values, layer, value)
        query = query * scale
        prompt = self._at_prompts(query, self.slots.keys[layer].transpose(2, 3), groups)
        own = torch.bmm(
            query.reshape(rows * groups, heads // groups, -1), own_keys.flatten(0, 1).transpose(1, 2)
        )
        scores = torch.cat([prompt, own.view(rows, heads, -1)], -1).add_(self._bias(window, query.dtype))
        # in float32 inside, whatever the dtype of what it reads and writes
        probs = scores.softmax(-1)
        width = prompt.shape[-1]
        answer = self._at_prompts(probs[..., :width], self.slots.values[layer], groups)
        mine = torch.bmm(
            probs[..., width:].reshape(rows * groups, heads // groups, -1), own_values.flatten(0, 1)
        )
        return answer + mine.view(rows, heads, -1)

    def _at_prompts(self, x: Tensor, states: Tensor, groups: int) -> Tensor:
        """Each row's x [R, H, K] times what its slot holds, states [S, G, K, N]: [R, H, N]."""
        rows, heads, _ = x.shape
        slots, _, inner, outer = states.shape
        wanted, seats = len(self.slot), slots * self._places
        if self._seats is not None:
            x = x.new_zeros(seats, heads, inner).index_copy_(0, self._seats, x[:wanted])
        elif wanted < seats:
            x = nn.functional.pad(x[:wanted], (0, 0, 0, 0, 0, seats - wanted))
        else:
            x = x[:wanted]
        grid = x.reshape(slots, self._places, groups, heads // groups, inner).transpose(1, 2)
        found = torch.bmm(grid.reshape(slots * groups, -1, inner), states.reshape(-1, inner, outer))
        found = found.view(slots, groups, self._places, heads // groups, outer).transpose(1, 2)
        found = found.reshape(seats, heads, outer)
        found = found[:wanted] if self._seats is None else found.index_select(0, self._seats)
        return found if wanted == rows else nn.functional.pad(found, (0, 0, 0, 0, 0, rows - wanted))

    def _write(self, held: dict[nn.Module, Tensor], layer: nn.Module, states: Tensor) -> Tensor:
        """Put the newest token's states [R, G, D] behind the others; return all, [R, G, T, D]."""
        own = held.get(layer)
        if own is None or own.shape[2] < self._room:
            wide = states.new_zeros(*states.shape[:2], self._room, states.shape[-1])
            if own is not None:
                wide[:, :, : self.said] = own
            held[layer] = own = wide
        own[:, :, self.said] = states
        return own

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, P + T]: 0 where a row sees a key, -inf elsewhere; the same for all layers of a window."""
        if window not in self._biases:
            width = self.slots.width
            at = torch.arange(width, device=self.device)
            own = torch.arange(self._room, device=self.device)
            hidden = [at >= self.seen[:, None], (own > self.said).expand(len(self), -1)]
            if window is not None:
                hidden[0] = hidden[0] | (self.positions[:, None] - at >= window)
                hidden[1] = hidden[1] | (self.said - own >= window)
            ruled_out = torch.cat(hidden, 1)
            zeros = torch.zeros(ruled_out.shape, dtype=dtype, device=self.device)
            self._biases[window] = zeros.masked_fill_(ruled_out, float("-inf"))[:, None]
        return self._biases[window]
