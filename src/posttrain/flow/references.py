"""`@step`, `@step/file`: the grammar of references, and rewriting them wherever they stand in plain data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_REFERENCE = re.compile(r"@([A-Za-z_][\w-]*(?:\.(?:[\w-]+|\*))*)(?:/(.+))?")
NAME = re.compile(r"[A-Za-z_][\w-]*")
VARIANT = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Reference:
    """parts: the dotted words after `@`. file: the path inside the artifact, "" for the artifact itself."""

    parts: tuple[str, ...]
    file: str = ""

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    def __str__(self) -> str:
        return f"@{self.name}/{self.file}" if self.file else f"@{self.name}"


def read_reference(text: str) -> Reference | None:
    """The reference that `text` is, None where it is none: a whole string, never a part of one."""
    match = _REFERENCE.fullmatch(text)
    if match is None or (match[2] and (".." in match[2].split("/") or match[2].startswith("/"))):
        return None
    return Reference(tuple(match[1].split(".")), match[2] or "")


def rewrite(value: Any, change: Callable[[Reference], Any]) -> Any:
    """Copy plain data with every reference in it replaced by what `change` makes of it.

    A list that `change` returns for an item of a list is spliced in, of a mapping its values; None leaves the
    reference alone.
    """
    if isinstance(value, dict):
        return {key: rewrite(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        items: list[Any] = []
        for inner in value:
            new = rewrite(inner, change)
            if isinstance(inner, str) and isinstance(new, dict):
                new = list(new.values())
            items.extend(new if isinstance(inner, str) and isinstance(new, list) else [new])
        return items
    if isinstance(value, str):
        reference = read_reference(value)
        changed = change(reference) if reference else None
        return value if changed is None else changed
    return value


def references_in(value: Any) -> list[Reference]:
    """Every reference in plain data, in the order it is written."""
    found: list[Reference] = []

    def note(reference: Reference) -> None:
        found.append(reference)

    rewrite(value, note)
    return found
