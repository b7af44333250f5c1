"""Weights laid out as the matrix kernels of the CPU read them, for as long as a batch is being sampled.

oneDNN lays a weight out anew in every product. That is lost in products of hundreds of rows, and a quarter of
the time in those of decoding, which have a few dozen (docs/dev-log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    laid_out = {at: torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) for at, weight in copies.items()}
    try:
        for layer in layers:
            layer.forward = _forward(laid_out[layer.weight.data_ptr()], layer.bias)
        yield
    finally:
        for layer in layers:
            del layer.forward


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


def _forward(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward
