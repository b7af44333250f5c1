"""Log-probs of wanted tokens in chunks, so that the [tokens, vocabulary] matrix never exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at once: products gain no more from more rows, and each chunk is added to the weight's gradient.
CHUNK = 16_000_000
# Of them, those that are float32 at a time on the CPU: 4 MB, which pass from step to step through the cache.
TILE = 1_000_000


class HeadLogps(torch.autograd.Function):
    """logp[i] = log softmax((h_i W^T + b) / t)[target_i] and its entropy; logits are made again in backward.

    With p = softmax(z), z the logits over the temperature t: d logp / dz = onehot - p, and d entropy / dz =
    -p (log p + entropy). The upstream gradient multiplies rows of the small [N, H] sides of the two products,
    not the [N, V] matrix between them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [N]
        entropies: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor | None]:  # [N], [N] float32
        logps = hidden.new_empty(len(targets), dtype=torch.float32)
        entropy = torch.empty_like(logps) if entropies else None
        chunks = _chunks(len(targets), weight.shape[0])
        room = _room(hidden, weight, chunks)
        for rows in chunks:
            logits = _logits(hidden[rows], weight, bias, room)
            for tile, at in _tiles(logits, rows.start):
                logq = _tempered(tile, temperature).log_softmax(-1)
                logps[at] = logq.gather(-1, targets[at, None]).squeeze(-1)
                if entropy is not None:
                    entropy[at] = -torch.linalg.vecdot(logq.exp(), logq)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an entropy that is only looked at costs no gradient
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        grad = torch.zeros(len(targets), device=hidden.device) if grad is None else grad
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        # d logp / dz has one factor a row, which can wait for the small sides of the products
        factor = (-grad if grad_entropy is None else torch.ones_like(grad))[:, None] / ctx.temperature
        chunks = _chunks(len(targets), weight.shape[0])
        room = _room(hidden, weight, chunks)
        product = torch.empty_like(weight) if need_weight else None
        for rows in chunks:
            slope = _logits(hidden[rows], weight, bias, room)  # each tile overwritten
            for tile, at in _tiles(slope, rows.start):
                logits = _tempered(tile, ctx.temperature)
                if grad_entropy is not None:
                    exact = _slope(logits, targets[at], grad[at], entropy[at], grad_entropy[at])
                else:
                    # p - onehot in float32, so that it stays exact where p is nearly 1
                    exact = logits.softmax(-1)
                    exact.scatter_add_(1, targets[at, None], exact.new_full((len(exact), 1), -1.0))
                if grad_bias is not None:
                    grad_bias += factor[at, 0] @ exact
                tile.copy_(exact)
            if grad_hidden is not None:
                torch.mul(slope @ weight, factor[rows], out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += torch.mm(
                    slope.t(), (hidden[rows] * factor[rows]).to(hidden.dtype), out=product
                )
        if product is not None and grad_weight is not None:
            grad_weight = product.copy_(grad_weight)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _room(hidden: Tensor, weight: Tensor, chunks: list[slice]) -> Tensor:
    """Where the logits of one chunk after the other stand: what is taken anew each time lies scattered."""
    return hidden.new_empty(max((rows.stop - rows.start for rows in chunks), default=0), weight.shape[0])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """[n, H] -> [n, V], in the first rows of `room`."""
    room = room[: len(hidden)]
    if bias is None:
        return torch.mm(hidden, weight.t(), out=room)
    return torch.addmm(bias, hidden, weight.t(), out=room)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """float32, over the temperature; may be `logits` itself."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def _slope(logits: Tensor, targets: Tensor, grad: Tensor, entropy: Tensor, grad_entropy: Tensor) -> Tensor:
    """d loss / d logits where the entropy takes part: [rows, V]."""
    logq = logits.log_softmax(-1)
    factor = logq.add(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad[:, None])
    return logq.exp_().mul_(factor.neg_()).scatter_add_(1, targets[:, None], grad[:, None])


def _chunks(total: int, width: int) -> list[slice]:
    step = max(16, CHUNK // width)
    return [slice(a, min(a + step, total)) for a in range(0, total, step)]


def _tiles(logits: Tensor, start: int) -> Iterator[tuple[Tensor, slice]]:
    """Rows of logits [n, V] that are worked on in float32 at once, and where they stand from `start` on."""
    rows, width = logits.shape
    step = max(1, TILE // width) if logits.device.type == "cpu" else rows
    for a in range(0, rows, step):
        yield logits[a : a + step], slice(start + a, start + min(a + step, rows))


def token_logps(
    hidden: Tensor,  # [N, H]
    head: nn.Module,
    targets: Tensor,  # [N]
    *,
    entropies: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor | None]:  # [N] float32, [N] float32 or None
    """Log-probs of `targets` under the head. softcap: z -> c tanh(z / c), as Gemma's final logits have.
    temperature: the logits are divided by it, so these are log-probs of the distribution sampled from.
    """
    if type(head) is nn.Linear and softcap is None:
        return HeadLogps.apply(hidden, head.weight, head.bias, targets, entropies, temperature)

    def chunk(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return from_logits(logits / temperature, t)

    weight = getattr(head, "weight", None)
    width = weight.shape[0] if isinstance(weight, Tensor) else 32_000
    parts = [
        checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False)
        for rows in _chunks(len(targets), width)
    ]
    if not parts:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty if entropies else None
    logps = torch.cat([part[0] for part in parts])
    return logps, torch.cat([part[1] for part in parts]) if entropies else None


def from_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [N] of targets [N] and entropies [N] from float32 logits [N, V]."""
    logq = logits.log_softmax(-1)
    return logq.gather(-1, targets[:, None]).squeeze(-1), -(logq.exp() * logq).sum(-1)
