"""Plain data of a step when others are left out: what stands in for a reference to one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from posttrain.flow.references import Reference, read_reference

TRAINS = "train"  # a step of this verb that is left out is stood in for by the model it starts from


class LeftAlone(Exception):
    """A field would be left with nothing. Its text goes after the step's name."""


def stand_in(kind: Any, body: Mapping[str, Any], stands: Mapping[str, str | None]) -> str | None:
    """What is put where a step that is left out was named: the model a training starts from; None, nothing.

    Raises LeftAlone for a training that starts from no model.
    """
    if kind != TRAINS:
        return None
    model = body.get("model")
    start = model.get("path") if isinstance(model, dict) else model
    if not isinstance(start, str):
        raise LeftAlone(" starts from no model, so nothing stands in for it; leave it in")
    new: str = put_in(start, stands, ("model",))
    return new


def put_in(value: Any, stands: Mapping[str, str | None], path: tuple[str, ...] = ()) -> Any:
    """A copy of plain data with every reference replaced by what stands in for it.

    In a list what has no stand-in goes away, and of two items that have become the same one stays. Raises
    LeftAlone where a list goes empty, or anything but a list named what has no stand-in.
    """
    if isinstance(value, dict):
        return {key: put_in(inner, stands, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        kept: list[Any] = []
        for i, inner in enumerate(value):
            new = None if _gone(inner, stands) else put_in(inner, stands, (*path, str(i)))
            if new is not None and (new not in kept or inner in value[:i]):
                kept.append(new)
        if value and not kept:
            raise _alone(path)
        return kept
    reference = read_reference(value) if isinstance(value, str) else None
    if reference is None or reference.name not in stands:
        return copy.copy(value)
    new = stands[reference.name]
    known = read_reference(new) if new else None
    if new is None or (reference.file and (known is None or known.file)):
        raise _alone(path)
    return str(Reference(known.parts, reference.file)) if known and reference.file else new


def _gone(value: Any, stands: Mapping[str, str | None]) -> bool:
    reference = read_reference(value) if isinstance(value, str) else None
    return reference is not None and reference.name in stands and stands[reference.name] is None


def _alone(path: tuple[str, ...]) -> LeftAlone:
    return LeftAlone(f".{'.'.join(path)} would be left with nothing; leave the step out too")
