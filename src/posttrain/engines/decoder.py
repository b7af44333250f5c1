"""A batch of rows that a causal language model continues token by token, through its cache if it has one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from posttrain.engines.shapes import filled, longest
from posttrain.models.rope import common_length

# padded: rows of any lengths, padded on the left. even: rows of one length. plain: the same, and no cache.
Mode = Literal["padded", "even", "plain"]
# Root-mean-square error of logits, as a share of their spread, above which a mode is wrong, not just rounded.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Wiring:
    """How a model takes its inputs. cache_name: the argument and output that carry its cache."""

    hf: Any
    mode: Mode
    cache_name: str | None
    has_positions: bool
    has_keep: bool


class RoomyLayer(DynamicLayer):
    """A cache layer with room to grow: a new token writes one token, where DynamicLayer copies them all."""

    _room_keys: Tensor
    _room_values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room_keys, self._room_values = key_states[:, :, :0], value_states[:, :, :0]
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if new > self._room_keys.shape[-2]:
            self._room_keys = _widen(self._room_keys[:, :, :old], new + new // 2)
            self._room_values = _widen(self._room_values[:, :, :old], new + new // 2)
        self._room_keys[:, :, old:new] = key_states
        self._room_values[:, :, old:new] = value_states
        self.keys, self.values = self._room_keys[:, :, :new], self._room_values[:, :, :new]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        length = self.get_seq_length()
        if length:
            self._room_keys = self._room_keys.index_select(0, beam_idx)
            self._room_values = self._room_values.index_select(0, beam_idx)
            self.keys, self.values = self._room_keys[:, :, :length], self._room_values[:, :, :length]


def _widen(states: Tensor, length: int) -> Tensor:
    """states [B, H, T, D] at the start of a new [B, H, length, D]."""
    wide = states.new_empty(*states.shape[:2], length, states.shape[-1])
    wide[:, :, : states.shape[-2]] = states
    return wide


@final
class RowDecoder:
    """The decoder of any model: rows that begin together, with the cache that transformers gives them."""

    joins = False  # a batch begins when none is under way

    def __init__(self, hf: Any) -> None:
        self.wiring = wire(hf)

    def begin(self, prompts: Sequence[Sequence[int]], slot: list[int], rows: int) -> tuple[Rows, Tensor]:
        """Rows that continue prompts[slot[r]], and more up to `rows` that nobody wants.

        Also logits [R, V] of each row's first token.
        """
        begun = Rows(self.wiring, prompts)
        begun.select(filled(slot, rows), len(slot))
        return begun, begun.logits

    def step(self, waves: Sequence[Rows], tokens: Tensor) -> Tensor:
        """Append tokens [R] to the rows; logits [R, V] of what comes after."""
        (rows,) = waves
        rows.push(tokens)
        return rows.logits


class Rows:
    """Rows under way. `logits` [R, V]: of the next token of each row."""

    def __init__(self, wiring: Wiring, prompts: Sequence[Sequence[int]]) -> None:
        self.wiring = wiring
        device = wiring.hf.device
        width = max(map(len, prompts))
        padded = any(len(prompt) != width for prompt in prompts)
        if padded and wiring.mode != "padded":
            raise ValueError("rows of different lengths for a model that takes no padding")
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        starts = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        self.mask: Tensor | None = None  # [R, T] 1 for a token, 0 for padding
        if padded:
            self.mask = (torch.arange(width, device=device) >= starts[:, None]).long()
        self.next_position = width - starts  # [R]
        self.ids = ids  # [R, T], kept up in plain mode alone
        self.cache = _new_cache(wiring)
        positions = (torch.arange(width, device=device) - starts[:, None]).clamp_min(0)
        self.logits = self._forward(ids, positions)

    def __len__(self) -> int:
        return len(self.next_position)

    def select(self, kept: list[int], wanted: int) -> None:
        """Keep these rows, in this order, the first `wanted` for what they say; a row may be named more than
        once.
        """
        rows = torch.tensor(kept, device=self.next_position.device)
        self.logits = self.logits.index_select(0, rows)
        self.next_position = self.next_position.index_select(0, rows)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)
        if self.wiring.mode == "plain":
            self.ids = self.ids.index_select(0, rows)
        else:
            self.cache.reorder_cache(rows)

    def push(self, tokens: Tensor) -> None:
        """Append one token to each row: tokens [R]."""
        step = tokens[:, None]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        if self.wiring.mode == "plain":
            self.ids = step = torch.cat([self.ids, step], 1)
        end = longest(self.wiring.hf)  # rows that are over, and stay, go no further
        position = self.next_position if end is None else self.next_position.clamp(max=end - 1)
        self.logits = self._forward(step, position[:, None])
        self.next_position = self.next_position + 1

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        wiring = self.wiring
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": wiring.mode != "plain"}
        if wiring.mode == "padded":
            if self.mask is not None:
                inputs["attention_mask"] = self.mask
            if wiring.has_positions:
                inputs["position_ids"] = positions
        if wiring.mode != "plain" and self.cache is not None:
            inputs[wiring.cache_name or ""] = self.cache
        if wiring.has_keep:
            inputs["logits_to_keep"] = 1
        out = wiring.hf(**inputs)
        if wiring.mode != "plain":
            self.cache = getattr(out, wiring.cache_name or "")
        return out.logits[:, -1]


def _new_cache(wiring: Wiring) -> Any:
    """An empty cache to pass in, or None where the model makes its own."""
    if wiring.mode == "plain" or wiring.cache_name != "past_key_values":
        return None
    cache = DynamicCache(config=wiring.hf.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def wire(hf: Any) -> Wiring:
    """Find the fastest way to continue rows that agrees with the model's own forward, by trying it.

    Left padding is wrong for some architectures, and some have no cache that can be indexed by row; these get
    rows of one length, or no cache at all, and one warning.
    """
    base = hf.get_base_model() if hasattr(hf, "get_base_model") else hf
    names = inspect.signature(base.forward).parameters
    cache_name = next((name for name in ("past_key_values", "cache_params") if name in names), None)
    modes: tuple[Mode, ...] = ("padded", "even") if cache_name else ()
    reason = "it has no cache"
    if cache_name and common_length(base.config) is not None:
        modes, reason = ("even",), "the longest row decides how all are rotated"
    for mode in modes:
        wiring = Wiring(hf, mode, cache_name, "position_ids" in names, "logits_to_keep" in names)
        try:
            error = _error(wiring)
        except Exception as e:  # whatever a model raises for inputs it does not take
            reason = f"{type(e).__name__}: {e}"
            continue
        if error <= _TOLERANCE.get(hf.dtype, 0.1):
            if mode != "padded":
                warnings.warn(_slower(base, "only prompts of one length share a batch", reason), stacklevel=3)
            return wiring
        reason = f"logits with {'left padding' if mode == 'padded' else 'the cache'} are off by {error:.2g}"
    warnings.warn(_slower(base, "every token costs a whole forward", reason), stacklevel=3)
    return Wiring(hf, "plain", None, False, "logits_to_keep" in names)


def _slower(base: Any, how: str, reason: str) -> str:
    return f"sampling from {type(base).__name__} is slower than it could be: {how} ({reason})"


def _error(wiring: Wiring) -> float:
    """Error of this mode's logits against plain forwards, over rows that are padded, selected and pushed."""
    hf = wiring.hf
    generator = torch.Generator().manual_seed(0)
    short, long = (5, 11) if wiring.mode == "padded" else (8, 8)
    vocab = hf.get_input_embeddings().weight.shape[0]
    texts = [
        torch.randint(vocab, (length + 3,), generator=generator).to(hf.device) for length in (short, long)
    ]
    rows = Rows(wiring, [texts[0][:short].tolist(), texts[1][:long].tolist()])
    order = [1, 0, 1]
    rows.select(order, len(order))
    for step in range(3):
        rows.push(torch.stack([texts[i][(short, long)[i] + step] for i in order]))
    plain = [hf(input_ids=text[None], use_cache=False).logits[0, -1].float() for text in texts]
    expected = torch.stack([plain[i] for i in order])
    spread = (expected - expected.mean(-1, keepdim=True)).square().mean().sqrt()
    error = (rows.logits.float() - expected).square().mean().sqrt() / spread
    return float(error) if torch.isfinite(error) else float("inf")
