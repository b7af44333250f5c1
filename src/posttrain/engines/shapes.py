"""Sizes of what a decoder computes.

Few shapes are good: oneDNN makes a kernel for each new shape of a bf16 product and keeps it
(docs/dev-log.md).
"""

from __future__ import annotations

from typing import Any

STEP = 32  # tokens that the cache's lengths are multiples of


def whole_rows(rows: int) -> int:
    """Rows to compute for so many that are wanted: a power of two below 16, a multiple of 16 from there."""
    return -(-rows // 16) * 16 if rows > 8 else 1 << max(rows - 1, 0).bit_length()


def whole_tokens(tokens: int) -> int:
    """Places to hold for so many tokens that are wanted."""
    return -(-tokens // STEP) * STEP


def longest(hf: Any) -> int | None:
    """Tokens that a model has positions for; None where it knows no end."""
    return getattr(hf.config.get_text_config(), "max_position_embeddings", None)


def filled(items: list[int], size: int) -> list[int]:
    """`items`, and the first of them again up to `size`."""
    return items + items[:1] * (size - len(items))
