"""Norms and gated MLPs that keep for backward what they were given, and make the rest again.

What lies between a layer's matrix products is cheap to make and dear to keep: float32 copies in the norms,
activations in the MLP. No product is made twice, and every bit of the gradient stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")


def keep_less(hf: nn.Module) -> None:
    """Let RMS norms and gated MLPs keep less for backward; modules of any other kind stay as they are.

    A module's class becomes a subclass of its own of the same name, so that copies of the model take it
    along, and the names of weights do not change.
    """
    for module in hf.modules():
        kind: Any = type(module)
        if kind.__name__.endswith("RMSNorm"):
            module.__class__ = _norm(kind)
        elif all(hasattr(module, name) for name in GATED) and _as_usual(module):
            module.__class__ = _gated(kind)


@cache
def _norm(kind: Any) -> type[nn.Module]:
    def forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _made_again(lambda given: kind.forward(self, given, *args, **kwargs), hidden)

    return type(kind.__name__, (kind,), {"forward": forward})


@cache
def _gated(kind: Any) -> type[nn.Module]:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        if type(self.down_proj) is nn.Linear:
            return _made_again(lambda g, u: self.down_proj(self.act_fn(g) * u), gate, up)
        # an adapter may draw dropout, or be another one by the time of backward
        return self.down_proj(_made_again(lambda g, u: self.act_fn(g) * u, gate, up))

    return type(kind.__name__, (kind,), {"forward": forward})


def _made_again(make: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """make(*given), of which backward finds `given` alone.

    Making again stops at the last tensor that backward needs: where that is what a last product multiplies,
    the product itself is not made again.
    """
    if not torch.is_grad_enabled():
        return make(*given)
    return checkpoint(make, *given, use_reentrant=False, preserve_rng_state=False)


def _as_usual(module: Any) -> bool:
    """Whether the module computes down(act(gate(x)) * up(x)) to the bit."""
    weight = module.up_proj.weight
    probe = torch.linspace(-1, 1, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]
    with torch.no_grad():
        usual = module.down_proj(module.act_fn(module.gate_proj(probe)) * module.up_proj(probe))
        return torch.equal(module(probe), usual)
