"""AdamW on float32 master weights, clipping, moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.training.schedule import OptimizerConfig

TILE = 2**20  # entries


class Optimizer:
    """Masters in float32 beside the weights the model computes with.

    Gradients are added up in float32 as soon as each parameter's is ready, so a global batch of many
    micro-batches loses nothing to bf16 and the bf16 gradients never all exist at once.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        cfg: OptimizerConfig,
        lr: float,
        dtype: torch.dtype,
        exact: Collection[Tensor] = (),
        rates: Mapping[int, float] | None = None,
    ) -> None:
        """dtype: what the model computes in; float32 parameters are taken over as masters and rounded to
        it in place, but for those in `exact`, which compute in float32. rates: by a parameter's id, the
        factor of `lr` at which it learns, 1 where it is not named.
        """
        self.cfg, self.lr = cfg, lr
        self.parameters = [p for p in parameters if p.requires_grad]
        kept = {id(p) for p in exact}
        self.masters = [self._master(p, torch.float32 if id(p) in kept else dtype) for p in self.parameters]
        factors = [(rates or {}).get(id(p), 1.0) for p in self.parameters]
        groups = [
            {"params": chosen, "weight_decay": decay, "factor": factor}
            for factor in sorted(set(factors))
            for decay, matrices in ((cfg.weight_decay, True), (0.0, False))
            if (
                chosen := [
                    m
                    for m, f in zip(self.masters, factors, strict=True)
                    if f == factor and (m.ndim >= 2) == matrices
                ]
            )
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=cfg.betas, eps=cfg.eps, fused=True)
        self.ema = [m.detach().clone() for m in self.masters] if cfg.ema else None
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._collector(m))
            for p, m in zip(self.parameters, self.masters, strict=True)
            if p is not m
        ]

    @staticmethod
    def _master(p: nn.Parameter, dtype: torch.dtype) -> Tensor:
        if p.dtype == dtype == torch.float32:
            return p
        master = p.detach().float().requires_grad_()
        p.data = master.detach().to(dtype)
        return master

    @staticmethod
    def _collector(master: Tensor) -> Any:
        def collect(p: Tensor) -> None:
            assert p.grad is not None
            if master.grad is None:
                master.grad = p.grad.float()
            else:  # tile by tile: adding bf16 to float32 makes a float32 copy of it first
                tiles = (x.reshape(-1).split(TILE) for x in (master.grad, p.grad))
                for total, part in zip(*tiles, strict=True):
                    total.add_(part)
            p.grad = None

        return collect

    def step(self, weight: float, factor: float) -> float:
        """Divide the summed gradient by the global weight, clip, update. factor: of the peak learning rate.

        Returns the gradient's norm before clipping. Where it is not finite nothing is changed.
        """
        gradients = [m.grad for m in self.masters if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item() / weight
        if not math.isfinite(norm):
            return norm
        scale = min(1.0, self.cfg.clip / (norm + 1e-6)) if self.cfg.clip else 1.0
        # the fused update divides by this as it reads the gradients: no pass over them of its own
        self.adam.grad_scale = torch.tensor(weight / scale, device=gradients[0].device)  # type: ignore[attr-defined]
        self.adam.found_inf = torch.zeros((), device=gradients[0].device)  # type: ignore[attr-defined]
        for group in self.adam.param_groups:
            group["lr"] = self.lr * factor * group["factor"]
        self.adam.step()
        for m in self.masters:
            m.grad = None
        self._publish(self.masters)
        if self.ema is not None and self.cfg.ema:
            torch._foreach_lerp_(self.ema, [m.detach() for m in self.masters], 1 - self.cfg.ema)
        return norm

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(m).all()) for m in self.masters)

    @torch.no_grad()
    def _publish(self, values: list[Tensor]) -> None:
        """Round masters into the weights the model computes with."""
        for p, value in zip(self.parameters, values, strict=True):
            if p is not value:
                p.copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model computes with the moving average, where one is kept: with what would be saved."""
        held = [p.data for p in self.parameters]
        for p, value in zip(self.parameters, self.ema or [], strict=False):
            p.data = value.to(p.dtype)
        try:
            yield
        finally:
            for p, value in zip(self.parameters, held, strict=True):
                p.data = value

    def restore(self, values: list[Tensor]) -> None:
        """Set masters and weights."""
        with torch.no_grad():
            for m, value in zip(self.masters, values, strict=True):
                m.copy_(value)
        self._publish(self.masters)

    def finish(self, best: list[Tensor] | None) -> None:
        """Put float32 weights into the model for saving: the best ones where given, else the average, else
        the last.
        """
        chosen = best or self.ema or self.masters
        for hook in self._hooks:
            hook.remove()
        for p, value in zip(self.parameters, chosen, strict=True):
            p.data = value.detach().to(p.device, torch.float32)
            p.grad = None

    def state(self) -> dict[str, Any]:
        return {
            "masters": [m.detach() for m in self.masters],
            "adam": self.adam.state_dict(),
            "ema": self.ema,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.restore(state["masters"])
        self.adam.load_state_dict(state["adam"])
        if self.ema is not None:
            self.ema = [e.to(m.device) for e, m in zip(state["ema"], self.masters, strict=True)]
