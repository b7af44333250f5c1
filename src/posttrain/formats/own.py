"""Our own records, as `write_records` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from posttrain.formats.build import Origin
from posttrain.formats.fields import Plain
from posttrain.formats.messages import image_path
from posttrain.formats.rejects import row_error
from posttrain.records import KINDS, ROW, Row


def matches(row: Plain) -> bool:
    kind = row.get("kind")
    return isinstance(kind, str) and kind in KINDS and isinstance(row.get("provenance"), dict)


def read(row: Plain, origin: Origin) -> Iterator[Row]:
    """The record itself, its provenance kept; paths of images are made to hold from any folder."""
    try:
        yield ROW.validate_python(_with_images(row, origin.file))
    except ValidationError as e:
        raise row_error(e) from None


def _with_images(row: Plain, file: str) -> dict[str, Any]:
    found = dict(row)
    if isinstance(found.get("prompt"), dict):
        found["prompt"] = _with_images(found["prompt"], file)
    if isinstance(found.get("messages"), list):
        found["messages"] = [_turn(turn, file) for turn in found["messages"]]
    return found


def _turn(turn: Any, file: str) -> Any:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn
    parts = [
        {**part, "image": image_path(part["image"], file)}
        if isinstance(part, dict) and isinstance(part.get("image"), str)
        else part
        for part in turn["content"]
    ]
    return {**turn, "content": parts}
