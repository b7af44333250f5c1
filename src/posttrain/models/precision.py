"""What to compute in: bf16 where the hardware multiplies it natively, else float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from posttrain.common.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bfloat16", "float32"]


def pick_device(device: str = "auto") -> str:
    """ "auto" is the first CUDA device where there is one, else the CPU.

    Raises ConfigError for a device that this machine or this build of torch does not have.
    """
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as e:
            reason = str(e).splitlines()[0]
            raise ConfigError(f"device '{device}' cannot be used: {reason}; try auto or cpu") from None
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(precision: Precision, device: str) -> torch.dtype:
    """ "auto" is bf16 on CPUs with bf16 dot products or matrix tiles and on CUDA devices that have it."""
    import torch

    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
