"""What a killed run needs to go on bit-exactly, in one file that is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.common.errors import StoreError
from posttrain.common.files import atomic

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of training; the last one stays in place until the new one is on the disk."""
    with atomic(folder / NAME, "wb") as f:
        torch.save(state, f)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last whole state, or None. Nothing in it is executed."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:
        raise StoreError(
            f"{path} cannot be read ({e}); delete it to train this step from its beginning"
        ) from e
