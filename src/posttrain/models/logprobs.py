"""Log-probs of wanted tokens without the [tokens, vocabulary] matrix ever being there whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at once: products gain no more from more of them.
CHUNK = 8_000_000
# Of them, those that are float32 at a time on the CPU: 4 MB, which pass from step to step through the cache.
TILE = 1_000_000
NARROWEST = 256  # entries of the vocabulary, however many tokens are wanted


class HeadLogps(torch.autograd.Function):
    """logp[i] = log softmax((h_i W^T + b) / t)[target_i] and its entropy; logits are made again in backward.

    The vocabulary is taken block by block. With q the softmax within a block and s the share of all
    probability that lies in it, p = s q; the entropy is the sum over blocks of s (that of q - log s).

    With z the logits over the temperature t: d logp / dz = onehot - p, and d entropy / dz = -p (log p +
    entropy). The upstream gradient multiplies rows of the small [N, H] sides of the two products, not the
    [N, V] matrix between them.
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
        blocks = _blocks(len(targets), weight.shape[0])
        logps = hidden.new_zeros(len(targets), dtype=torch.float32)
        masses = logps.new_zeros(len(blocks), len(targets))  # log of a block's sum of exponentials
        within = torch.empty_like(masses) if entropies else None  # entropy of q
        room = _room(hidden, blocks)
        for i, block in enumerate(blocks):
            logits = _logits(hidden, weight, bias, block, room)
            for tile, rows in _tiles(logits):
                z = _tempered(tile, temperature)
                logq = z.log_softmax(-1)
                if len(blocks) > 1:
                    masses[i, rows] = z.amax(-1) - logq.amax(-1)
                at, inside = _places(targets[rows], block)
                logps[rows] += logq.gather(-1, at).squeeze(-1).where(inside, 0.0)
                if within is not None:
                    within[i, rows] = -torch.linalg.vecdot(logq.exp(), logq)
        shares = masses - masses.logsumexp(0)  # log s: exactly 0 where there is one block
        logps += shares.gather(0, (targets // blocks[0].stop)[None])[0]
        entropy = None if within is None else (shares.exp() * (within - shares)).sum(0)
        ctx.save_for_backward(hidden, weight, bias, targets, shares, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an entropy that is only looked at costs no gradient
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, shares, entropy = ctx.saved_tensors
        grad = torch.zeros(len(targets), device=hidden.device) if grad is None else grad
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden: Tensor | None = None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        # d logp / dz has one factor a row, which can wait for the small sides of the products
        factor = (-grad if grad_entropy is None else torch.ones_like(grad))[:, None] / ctx.temperature
        scaled = (hidden * factor).to(hidden.dtype)
        blocks = _blocks(len(targets), weight.shape[0])
        room = _room(hidden, blocks)
        for i, block in enumerate(blocks):
            slope = _logits(hidden, weight, bias, block, room)  # each tile overwritten
            for tile, rows in _tiles(slope):
                z = _tempered(tile, ctx.temperature)
                at, inside = _places(targets[rows], block)
                if grad_entropy is not None:
                    logp = z.log_softmax(-1).add_(shares[i, rows, None])
                    mixed = (
                        logp.add(entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(grad[rows, None])
                    )
                    exact = logp.exp_().mul_(mixed.neg_()).scatter_add_(1, at, (grad[rows] * inside)[:, None])
                else:
                    # p - onehot in float32, so that it stays exact where p is nearly 1
                    exact = z.softmax(-1)
                    if len(blocks) > 1:
                        exact.mul_(shares[i, rows, None].exp())
                    exact.scatter_add_(1, at, -inside[:, None].float())
                if grad_bias is not None:
                    grad_bias[block] += factor[rows, 0] @ exact
                tile.copy_(exact)
            if need_hidden:
                part = slope @ weight[block]
                grad_hidden = part if grad_hidden is None else grad_hidden.float().add_(part)
            if grad_weight is not None:
                torch.mm(slope.t(), scaled, out=grad_weight[block])
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * factor).to(hidden.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _blocks(tokens: int, vocabulary: int) -> list[slice]:
    """Ranges of the vocabulary such that no more than CHUNK logits of all tokens are held at once."""
    step = max(NARROWEST, CHUNK // max(tokens, 1))
    return [slice(a, min(a + step, vocabulary)) for a in range(0, vocabulary, step)]


def _room(hidden: Tensor, blocks: list[slice]) -> Tensor:
    """Where the logits of one block after the other stand: large tensors taken anew would lie scattered."""
    return hidden.new_empty(len(hidden) * blocks[0].stop)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, block: slice, room: Tensor) -> Tensor:
    """[N, H] -> [N, entries of the block], in `room`."""
    width = block.stop - block.start
    out = room[: len(hidden) * width].view(len(hidden), width)
    if bias is None:
        return torch.mm(hidden, weight[block].t(), out=out)
    return torch.addmm(bias[block], hidden, weight[block].t(), out=out)


def _places(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Where in the block each target stands, [n, 1], and whether it does, [n]."""
    at = targets - block.start
    inside = (at >= 0) & (targets < block.stop)
    return at.where(inside, 0)[:, None], inside


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """float32, over the temperature; may be `logits` itself."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def _tiles(logits: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Rows of logits [N, V] that are worked on in float32 at once, and which they are."""
    rows, width = logits.shape
    step = max(1, TILE // width) if logits.device.type == "cpu" else max(rows, 1)
    for a in range(0, rows, step):
        part = slice(a, min(a + step, rows))
        yield logits[part], part


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
    step = max(16, CHUNK // width)
    parts = [
        checkpoint(chunk, hidden[a : a + step], targets[a : a + step], use_reentrant=False)
        for a in range(0, len(targets), step)
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
