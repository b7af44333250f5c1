"""Weights laid out as the matrix kernels of the CPU read them, for as long as a batch is being sampled.

oneDNN lays a weight out anew in every product. That is lost in products of hundreds of rows, and a quarter of
the time in those of decoding, which have a few dozen (docs/dev-log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import psutil
import torch
from torch import Tensor, nn

# New tokens from which laying out pays for itself, and the share of free memory that the copies may take: the
# results are the same bit for bit, so they do not depend on it.
_STEPS = 32
_SHARE = 1 / 8
# A product of no more multiplications than this is not oneDNN's in torch, and rounds otherwise.
_LEAST = 16**3
_ROWS = 64  # of a product, for which the layout is chosen
# Layers of one module that are given the same input, and too narrow apart: one product is faster than three.
_TOGETHER = ("q_proj", "k_proj", "v_proj")


@contextmanager
def packed(hf: nn.Module, steps: int) -> Iterator[None]:
    """Within, the linear layers of `hf` multiply by packed copies of their weights, which must not change.

    Does nothing where it would not pay: few `steps`, another device or dtype than the CPU's bfloat16, no
    oneDNN, or too little memory for the copies.
    """
    layers = _layers(hf) if steps >= _STEPS else []
    copies = {layer.weight.data_ptr(): layer.weight for layer in layers}
    size = sum(weight.nbytes for weight in copies.values())
    if not layers or size > psutil.virtual_memory().available * _SHARE:
        yield
        return
    laid_out: dict[tuple[int, ...], Tensor] = {}  # tied weights once
    forwards: dict[int, Callable[[Tensor], Tensor]] = {}
    for group in _groups(hf, layers):
        at = tuple(layer.weight.data_ptr() for layer in group)
        if at not in laid_out:
            laid_out[at] = _laid_out([layer.weight for layer in group])
        own = [_forward(laid_out[at], group[0].bias)] if len(group) == 1 else _forwards(laid_out[at], group)
        forwards |= dict(zip(map(id, group), own, strict=True))
    try:
        for layer in layers:
            layer.forward = forwards[id(layer)]
        yield
    finally:
        for layer in layers:
            del layer.forward


def _groups(hf: nn.Module, layers: Sequence[Any]) -> Iterator[list[Any]]:
    """The layers, those together that are given the same input."""
    left = {id(layer): layer for layer in layers}
    for module in hf.modules():
        group: list[Any] = [getattr(module, name, None) for name in _TOGETHER]
        if not all(id(layer) in left for layer in group):
            continue
        if len({(layer.in_features, layer.bias is None) for layer in group}) == 1:
            yield [left.pop(id(layer)) for layer in group]
    for layer in left.values():
        yield [layer]


def _layers(hf: nn.Module) -> list[Any]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return []
    return [
        module
        for module in hf.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.numel() > _LEAST
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
    ]


def _laid_out(weights: Sequence[Tensor]) -> Tensor:
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)


def _forward(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward


class _Made(local):
    """What one product gave for layers that have not been called yet, in each thread. given: its input."""

    given: Tensor | None = None
    parts: Sequence[Tensor | None] = ()


def _forwards(weight: Tensor, group: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    """Of layers that are called with the same input in turn; with another, each is right but does it all."""
    bias = None if group[0].bias is None else torch.cat([layer.bias for layer in group])
    whole, made = _forward(weight, bias), _Made()
    sizes = [layer.out_features for layer in group]

    def own(number: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            parts = list(made.parts) if made.given is x else []
            part = parts[number] if parts else None
            if part is None:
                parts = list(whole(x).split(sizes, -1))
                part = parts[number]
            parts[number] = None
            made.given, made.parts = (None, ()) if not any(p is not None for p in parts) else (x, parts)
            assert part is not None
            return part

        return forward

    return [own(number) for number in range(len(group))]
