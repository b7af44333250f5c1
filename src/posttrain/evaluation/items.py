"""The rows a task asks about."""

from __future__ import annotations

from posttrain.common.errors import DataError
from posttrain.records import Prompt, R


def read_items(path: str, kind: type[R]) -> list[R]:
    """The rows of a file or an artifact. Raises DataError where there are none, or of another kind."""
    from posttrain.formats import read_records

    rows = read_records(path, kind)
    if not rows:
        raise DataError(f"{path}: no rows to evaluate on")
    return rows


def group_of(prompt: Prompt, tag: str) -> str:
    """The prompt's value of a tag; "" where none is asked for, "none" where the prompt lacks it."""
    return prompt.tags.get(tag, "none") if tag else ""
