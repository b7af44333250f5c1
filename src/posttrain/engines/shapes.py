"""Sizes of what a decoder computes.

Few shapes are good: oneDNN makes a kernel for each new shape of a bf16 product and keeps it
(docs/dev-log.md).
"""

from __future__ import annotations

from typing import Any


def whole_rows(rows: int) -> int:
    """Rows to compute for so many that are wanted: a power of two below 16, then a multiple of 16; of many,
    of an eighth of the power of two below them.
    """
    return _up(rows, 16) if rows > 8 else 1 << max(rows - 1, 0).bit_length()


def whole_tokens(tokens: int) -> int:
    """Places to hold for so many tokens that are wanted: a multiple of 32, or of an eighth as above."""
    return _up(tokens, 32)


def _up(count: int, least: int) -> int:
    step = max(least, 1 << max(count.bit_length() - 4, 0))
    return -(-count // step) * step


def longest(hf: Any) -> int | None:
    """Tokens that a model has positions for; None where it knows no end."""
    return getattr(hf.config.get_text_config(), "max_position_embeddings", None)


def filled(items: list[int], size: int) -> list[int]:
    """`items`, and the first of them again up to `size`."""
    return items + items[:1] * (size - len(items))
