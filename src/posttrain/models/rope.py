"""Rotary positions whose frequencies go by the longest row of a forward (LongRoPE: Phi-3, Phi-4-mini).

transformers rotates all rows of a forward by the long factors as soon as one position lies beyond the length
that the model was first trained for; rows of either kind must then not share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def common_length(config: Any) -> int | None:
    """Tokens up to which rows may stand beside each other, whatever they are; None for any number.

    config: of the model. LongRoPE's two sets of factors: Ding et al. (arXiv 2402.13753).
    """
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [each for each in given.values() if isinstance(each, Mapping)]
    return min(
        (
            int(each["original_max_position_embeddings"])
            for each in (given, *by_layer)
            if each.get("rope_type") == "longrope"
        ),
        default=None,
    )


def set_by_longest(hf: nn.Module) -> bool:
    """Whether a forward sets the model's rotary embeddings anew by its longest row, which forwards at one
    time would do to each other: dynamic NTK scaling, LongRoPE.
    """
    kinds = [getattr(module, "rope_type", None) for module in hf.modules()]
    named = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any(name is not None and ("dynamic" in name or name == "longrope") for name in named)
