"""Attention in which each branch sees its own path, plugged into Hugging Face models by name.

`install(hf)` points a model at the implementation "forest". Called with a forest's layout it attends along
paths; called with cells, which keep keys and values from call to call, they attend; called with neither
(plain use) it is transformers' own SDPA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.models.layout import Layout

NAME = "forest"
KEEP = 512  # keys up to which probabilities cost less memory than the rest of a layer's activations


class PathAttention(torch.autograd.Function):
    """Softmax attention job by job on the CPU; softmax and sums over jobs are float32.

    Plain batched matrix products are several times as fast here as the fused CPU kernel, whose bf16
    backward does not use the matrix instructions (docs/dev-log.md). Probabilities over few keys are kept
    for backward, those over many are made again, so memory stays linear in tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # [H, T, D]
        key: Tensor,  # [G, T, D], H a multiple of G
        value: Tensor,  # [G, T, E]
        layout: Layout,
        scale: float,
        window: int | None,
    ) -> Tensor:  # [T, H, E]
        heads, total, _ = query.shape
        out = query.new_zeros(total, heads, value.shape[-1])
        learning = any(ctx.needs_input_grad)
        kept: list[Tensor | None] = []
        for i, job in enumerate(layout.jobs()):
            probs = _probs(query, key, layout, i, scale, window)
            answer = torch.bmm(probs, _gather(value, job.keys)).view(heads, job.reach - job.start, -1)
            out[job.start : job.stop] = answer[:, : job.stop - job.start].transpose(0, 1)
            kept.append(probs if learning and probs.shape[-1] <= KEEP else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        heads, _, width = query.shape
        groups = key.shape[0]
        grad_query = torch.zeros_like(query)
        grad_key = torch.zeros_like(key, dtype=torch.float32)
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        for i, job in enumerate(layout.jobs()):
            rows, real = slice(job.start, job.reach), job.stop - job.start
            probs = kept[i] if kept[i] is not None else _probs(query, key, layout, i, ctx.scale, ctx.window)
            k, v = _gather(key, job.keys), _gather(value, job.keys)
            q = query[:, rows].reshape(groups, -1, width)
            grad = grad_out[rows].transpose(0, 1).reshape(groups, -1, v.shape[-1])
            _scatter_add(grad_value, job.keys, torch.bmm(probs.transpose(1, 2), grad))
            slope = torch.bmm(grad, v.transpose(1, 2)).float()
            slope = torch._softmax_backward_data(slope, probs.float(), -1, torch.float32)
            slope = slope.mul_(ctx.scale).to(q.dtype)
            grad_query[:, job.start : job.stop] = torch.bmm(slope, k).view(heads, -1, width)[:, :real]
            _scatter_add(grad_key, job.keys, torch.bmm(slope.transpose(1, 2), q))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _probs(
    query: Tensor, key: Tensor, layout: Layout, index: int, scale: float, window: int | None
) -> Tensor:
    """Softmax over the keys of one job: [G, (H/G) * rows, K]."""
    job = layout.jobs()[index]
    groups, _, width = key.shape
    k = _gather(key, job.keys)
    rows = job.reach - job.start
    scores = torch.bmm(query[:, job.start : job.reach].reshape(groups, -1, width), k.transpose(1, 2))
    scores = scores.float().mul_(scale)
    mask = layout.mask(index, window)
    if mask is not None:
        scores.view(groups, -1, rows, k.shape[1]).add_(mask)
    probs = scores.softmax(-1).to(query.dtype)
    if job.reach > job.stop:  # rows that only round up have no part in the gradient
        probs.view(groups, -1, rows, k.shape[1])[:, :, job.stop - job.start :].zero_()
    return probs


def _gather(x: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """Rows of x [G, T, D] in the given ranges; a view where there is only one."""
    parts = [x[:, a:b] for a, b in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _scatter_add(total: Tensor, ranges: tuple[tuple[int, int], ...], x: Tensor) -> None:
    """Add x [G, K, D] into total [G, T, D] at the given ranges."""
    at = 0
    for a, b in ranges:
        total[:, a:b] += x[:, at : at + b - a]
        at += b - a


class Cells(Protocol):
    """Keys and values that outlive a forward, and how its tokens attend to them: a decoder's."""

    def attend(
        self,
        layer: nn.Module,
        query: Tensor,  # [1, H, T, D]
        key: Tensor,  # [1, G, T, D]
        value: Tensor,  # [1, G, T, E]
        scale: float,
        window: int | None,
    ) -> Tensor:  # [1, T, H, E]
        ...


def forest_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, G, T, D]
    value: Tensor,  # [1, G, T, E]
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    forest: Layout | None = None,
    cells: Cells | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer; `forest` or `cells` arrives through the model's
    keyword arguments.
    """
    if forest is None and cells is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    unknown = [
        name for name in ("softcap", "s_aux", "position_bias", "head_mask") if kwargs.get(name) is not None
    ]
    if unknown or dropout:
        raise NotImplementedError(f"forest attention has no {', '.join(unknown) or 'dropout'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if cells is not None:
        return cells.attend(module, query, key, value, scale, sliding_window), None
    assert forest is not None
    return along_paths(query, key, value, forest, scale, sliding_window), None


def along_paths(
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, G, T, D]
    value: Tensor,  # [1, G, T, E]
    layout: Layout,
    scale: float,
    window: int | None,
) -> Tensor:  # [1, T, H, E]
    """Attention in which each token sees its own path."""
    if query.device.type == "cuda":
        return _flex(query, key, value, layout, scale, window)
    out = PathAttention.apply(
        query[0].contiguous(), key[0].contiguous(), value[0].contiguous(), layout, scale, window
    )
    return out.unsqueeze(0)


_UNMASKED = ContextVar("posttrain_unmasked", default=False)


@contextlib.contextmanager
def unmasked() -> Iterator[None]:
    """Spare transformers the [T, T] mask that it would make for each forward and a forest never reads."""
    token = _UNMASKED.set(True)
    try:
        yield
    finally:
        _UNMASKED.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _UNMASKED.get() else sdpa_mask(*args, **kwargs)


def _flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None) -> Tensor:
    """FlexAttention over the same visibility rule: [1, T, H, E]."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = _compiled_flex() if q.device.type == "cuda" else flex_attention
    mask = layout.block_mask(window)
    out = compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    return out.transpose(1, 2)


_FLEX: list[Any] = []


def _compiled_flex() -> Any:
    if not _FLEX:
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]


def install(hf: PreTrainedModel) -> None:
    """Point a loaded model at forest attention where its architecture takes pluggable attention; else
    leave it.
    """
    AttentionInterface.register(NAME, forest_attention)
    AttentionMaskInterface.register(NAME, _mask)
    if getattr(hf, "_supports_attention_backend", False) or getattr(hf, "_supports_sdpa", False):
        hf.set_attn_implementation(NAME)
