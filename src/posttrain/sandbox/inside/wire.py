"""Plain Python values as JSON and back: all that two sandboxes tell each other.

A value that is read is rebuilt from data alone, by its own class: nothing that the other side defined comes
along, no `__eq__` that always says yes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO


class Unsendable(TypeError):
    """A value that is no plain data."""


class Opaque:
    """Stands for a value that could not be sent; it equals nothing and can do nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is neither true nor false")

    def __repr__(self) -> str:
        return f"<a {self.kind}, which is no plain data>"


def encode(value: Any, opaque: bool) -> Any:
    """What JSON can hold. Subclasses travel as the class they are made from, iterators as their items.

    opaque: whether something else becomes an `Opaque`; otherwise Unsendable is raised.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind, exact in _EXACT:
        if isinstance(value, kind):
            return exact(value)
    for tag, sequence in _SEQUENCES.items():
        if isinstance(value, sequence):
            items = [encode(item, opaque) for item in sequence.__iter__(value)]
            return items if sequence is list else {tag: items}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(k, opaque), encode(v, opaque)] for k, v in pairs]}
    if isinstance(value, Iterator):
        return {"iterator": [encode(item, opaque) for item in value]}
    if isinstance(value, Opaque):
        raise TypeError(f"{value!r} cannot be handed on")
    if not opaque:
        raise Unsendable(f"a {type(value).__name__} is no plain data")
    return {"opaque": type(value).__name__}


def decode(data: Any) -> Any:
    """The value of what `encode` made. Raises ValueError or TypeError for anything else."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, body),) = data.items()
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](decode(item) for item in body)
    if tag == "dict":
        return {decode(k): decode(v) for k, v in body}
    if tag == "iterator":
        return iter([decode(item) for item in body])
    if tag == "opaque":
        return Opaque(str(body)[:100])
    return _FROM_TEXT[tag](body)


_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_EXACT: tuple[tuple[type, Any], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, lambda b: {"bytes": bytes.hex(b)}),
    (bytearray, lambda b: {"bytearray": bytearray.hex(b)}),
    (complex, lambda c: {"complex": [complex(c).real, complex(c).imag]}),
    (range, lambda r: {"range": [r.start, r.stop, r.step]}),
)
_FROM_TEXT: dict[str, Any] = {
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
}


def send(pipe: BinaryIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def receive(pipe: BinaryIO, most: int = -1) -> dict[str, Any] | None:
    """The next message, None at the end. Raises ValueError for more than `most` bytes, or no message."""
    line = pipe.readline(most)
    if not line:
        return None
    if not line.endswith(b"\n"):
        if most >= 0 and len(line) >= most:
            raise ValueError(f"more than {most:,} bytes at once")
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no message")
    return message
