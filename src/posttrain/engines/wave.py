"""Rows that entered together: keys and values of their prompts, each held once, and the rows' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.engines.prefill import Slots
from posttrain.engines.shapes import whole_rows, whole_tokens

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class _Layer:
    """What a layer attends to, as views of what is held: made anew only where that moves."""

    prompt_keys: Tensor  # [S * G, D, P]
    prompt_values: Tensor  # [S * G, P, E]
    keys: Tensor  # [R, G, T, D], the rows' own
    values: Tensor  # [R, G, T, E]
    own_keys: Tensor  # the same, [R * G, D, T]
    own_values: Tensor  # [R * G, T, E]


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
        self._room = 0
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
        self._layers.clear()
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
        self._place = places
        self._places = whole_rows(max(taken.values()))
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}
        self._layers: dict[nn.Module, _Layer] = {}
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}

    def _order(self, groups: int) -> tuple[Tensor, Tensor]:
        """Where [S, G, places] takes its entries from among [R, G], and the other way round. What nobody
        wants, an empty place or a row too many, is a copy of another.
        """
        if groups not in self._orders:
            slots = whole_rows(len(self.slots.lengths))
            there = torch.zeros(slots, groups, self._places, dtype=torch.long)
            back = torch.zeros(len(self), groups, dtype=torch.long)
            slot, place = torch.tensor([self.slot, self._place])[..., None]
            row, group = torch.arange(len(self.slot))[:, None], torch.arange(groups)
            there[slot, group, place] = row * groups + group
            back[: len(row)] = (slot * groups + group) * self._places + place
            self._orders[groups] = there.flatten().to(self.device), back.flatten().to(self.device)
        return self._orders[groups]

    def begin(self) -> None:
        """Call before the forward that takes each row's next token."""
        room, masks = whole_tokens(self.said + 1), self._masks
        self._masks = {}
        if room == self._room and None in masks:  # as before, but that all see one token more
            self._masks[None] = masks[None]
            for mask, seen in zip(masks[None], (-1, 0), strict=True):
                mask[..., self.slots.width + self.said] = seen
        self._room = room

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
        held = self._layers.get(layer)
        if held is None or held.keys.shape[2] < self._room:
            held = self._layers[layer] = self._hold(layer, key, value)
        held.keys.select(2, self.said).copy_(key)
        held.values.select(2, self.said).copy_(value)
        query = (query * scale).reshape(rows * groups, heads // groups, -1)
        scores = torch.cat(
            [
                self._at_prompts(query, held.prompt_keys, groups).view(rows, heads, -1),
                torch.bmm(query, held.own_keys).view(rows, heads, -1),
            ],
            -1,
        )
        seen, hidden = self._mask(window, scores.dtype)
        scores.view(seen.dtype).bitwise_and_(seen).bitwise_or_(hidden)
        # in float32 inside, whatever the dtype of what it reads and writes
        probs = scores.softmax(-1).view(rows * groups, heads // groups, -1)
        width = held.prompt_keys.shape[-1]
        answer = self._at_prompts(probs[..., :width].contiguous(), held.prompt_values, groups)
        mine = torch.bmm(probs[..., width:].contiguous(), held.own_values)
        return answer.add_(mine).view(rows, heads, -1)

    def _at_prompts(self, x: Tensor, states: Tensor, groups: int) -> Tensor:
        """Each row's x [R * G, h, K] times what its slot holds, states [S * G, K, N]: [R * G, h, N]."""
        there, back = self._order(groups)
        _, share, inner = x.shape
        x = x.index_select(0, there).view(len(states), -1, inner)
        return torch.bmm(x, states).view(len(there), share, -1).index_select(0, back)

    def _hold(self, layer: nn.Module, key: Tensor, value: Tensor) -> _Layer:
        """Room for the rows' newest tokens in a layer; key, value: [R, G, D or E], as its states are."""
        keys, values = self._grown(self._keys, layer, key), self._grown(self._values, layer, value)
        return _Layer(
            self.slots.keys[layer].flatten(0, 1).transpose(1, 2),
            self.slots.values[layer].flatten(0, 1),
            keys,
            values,
            keys.flatten(0, 1).transpose(1, 2),
            values.flatten(0, 1),
        )

    def _grown(self, held: dict[nn.Module, Tensor], layer: nn.Module, states: Tensor) -> Tensor:
        """The rows' own states so far, [R, G, T, D], with room for the newest token's [R, G, D]."""
        own = held.get(layer)
        if own is None or own.shape[2] < self._room:
            wide = states.new_zeros(*states.shape[:2], self._room, states.shape[-1])
            if own is not None:
                wide[:, :, : self.said] = own[:, :, : self.said]
            held[layer] = own = wide
        return own

    def _mask(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two [R, 1, P + T] of the integers that are as wide as `dtype`: scores & the first | the second are
        -inf where a row does not see a key, and elsewhere what they were. The same for all layers of a
        window. A score in bf16 that is added to goes to float32 and back, which takes several times as long.
        """
        if window not in self._masks:
            width = self.slots.width
            at = torch.arange(width, device=self.device)
            own = torch.arange(self._room, device=self.device)
            hidden = [at >= self.seen[:, None], (own > self.said).expand(len(self), -1)]
            if window is not None:
                hidden[0] = hidden[0] | (self.positions[:, None] - at >= window)
                hidden[1] = hidden[1] | (self.said - own >= window)
            ruled_out = torch.cat(hidden, 1)[:, None]
            ints = _INTEGERS[dtype.itemsize]
            least = torch.full((), float("-inf"), dtype=dtype, device=self.device).view(ints)
            self._masks[window] = ruled_out.to(ints) - 1, ruled_out * least
        return self._masks[window]
