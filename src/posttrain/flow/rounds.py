"""What references mean inside one round of a `repeat:` block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.flow.references import Reference, read_reference, rewrite
from posttrain.flow.source import Places


@dataclass(frozen=True)
class RoundScope:
    """Rewrites the references of round `number` to full names.

    `@step`: this round's. `@previous.step`: the round before, in round 1 what `start:` says.
    `@all.step`: a list of what `start:` says, if it does, and of every round up to and with this one.
    """

    block: str
    steps: tuple[str, ...]
    start: Mapping[str, Any]
    number: int
    places: Places

    def rewrite(self, body: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = rewrite(body, self._change)
        return changed

    def _change(self, reference: Reference) -> Any:
        first, rest = reference.parts[0], reference.parts[1:]
        if first in self.steps:
            return str(self._in_round(self.number, reference.parts, reference.file))
        if first == "previous":
            self._check(reference, rest)
            return self._before(self.number, rest, reference)
        if first == "all":
            self._check(reference, rest)
            found = [self._before(1, rest, reference)] if rest[0] in self.start else []
            found += [
                str(self._in_round(number, rest, reference.file)) for number in range(1, self.number + 1)
            ]
            return [item for entry in found for item in (entry if isinstance(entry, list) else [entry])]
        return None

    def _in_round(self, number: int, parts: tuple[str, ...], file: str) -> Reference:
        return Reference((self.block, str(number), *parts), file)

    def _before(self, number: int, parts: tuple[str, ...], reference: Reference) -> Any:
        if number > 1:
            return str(self._in_round(number - 1, parts, reference.file))
        if parts[0] not in self.start:
            raise ConfigError(
                f"{self.places.at()}: {reference}: there is no round before round 1;"
                f" say what stands for it: start: {{{parts[0]}: …}}"
            )
        return rewrite_start(self.start[parts[0]], parts[1:], reference, self.places)

    def _check(self, reference: Reference, rest: tuple[str, ...]) -> None:
        if not rest or rest[0] not in self.steps:
            word = rest[0] if rest else ""
            raise ConfigError(
                f"{self.places.at()}: {reference}: no step '{word}' in '{self.block}'"
                f" ({nearest(word, list(self.steps))})"
            )


def rewrite_start(value: Any, variant: tuple[str, ...], reference: Reference, places: Places) -> Any:
    """What `@previous.step[.variant][/file]` means in round 1, given what `start:` says of the step."""
    if isinstance(value, list):
        return [rewrite_start(item, variant, reference, places) for item in value]
    if not variant and not reference.file:
        return value
    known = read_reference(value) if isinstance(value, str) else None
    if known is None or (known.file and reference.file):
        raise ConfigError(
            f"{places.at()}: {reference}: in round 1 this is start's {value!r}, which is no step to look into"
        )
    return str(Reference((*known.parts, *variant), known.file or reference.file))
