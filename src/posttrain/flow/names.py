"""Which step a reference means: rounds of a block, variants of a step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.common.config import nearest
from posttrain.flow.references import Reference
from posttrain.flow.repeats import Written


@dataclass(frozen=True)
class Target:
    """What a reference means before variants are told apart.

    names: of templates, more than one for `@rounds.*.policy`. picks: the variants named.
    star: all variants, `.*`. many: it stands for a list.
    """

    names: tuple[str, ...]
    picks: tuple[str, ...]
    star: bool
    many: bool

    def pick(self, axes: Mapping[str, tuple[str, ...]]) -> dict[str, str] | str:
        """Which axis each of the picks settles, {origin: variant}; else why that cannot be said.

        The picks name variants in the order of the axes; axes left out stay open.
        """
        origins = list(axes)
        ways = [
            dict(zip(chosen, self.picks, strict=True))
            for chosen in itertools.combinations(origins, len(self.picks))
            if all(pick in axes[origin] for origin, pick in zip(chosen, self.picks, strict=True))
        ]
        if len(ways) == 1:
            return ways[0]
        said = ".".join(self.picks)
        if ways:
            return f"'{said}' could name a variant of {' or of '.join(origins)}; write all of the variants"
        valid = [variant for variants in axes.values() for variant in variants]
        hint = nearest(self.picks[-1], valid) if valid else "it has no variants"
        return f"no variant '{said}' of '{self.names[0]}' ({hint})"


class Names:
    """The steps and blocks that references can name."""

    def __init__(self, written: Written) -> None:
        self.steps = {t.name for t in written.templates if t.name == t.origin}
        self.blocks = written.blocks
        self.known = sorted({*(t.origin for t in written.templates), *written.ablations})

    def find(self, reference: Reference) -> Target | str:
        """What the reference means, or why it means nothing."""
        first, rest = reference.parts[0], reference.parts[1:]
        if first in self.steps:
            return self._target((first,), rest, many=False)
        if first in self.blocks:
            return self._in_block(first, rest)
        if first in ("previous", "all"):
            return f"@{first} has a meaning only inside a repeat block"
        return f"no step '{reference.name}' ({nearest(reference.name, self.known)})"

    def _in_block(self, block: str, rest: tuple[str, ...]) -> Target | str:
        content = self.blocks[block]
        if not rest:
            return f"'{block}' is a repeat block; name one of its steps, e.g. @{block}.{content.steps[-1]}"
        rounds = [str(content.rounds)]
        many = rest[0] == "*"
        if many:
            rounds = [str(number) for number in range(1, content.rounds + 1)]
        elif rest[0].isdigit():
            if not 1 <= int(rest[0]) <= content.rounds:
                return f"'{block}' has rounds 1 to {content.rounds}"
            rounds = [str(int(rest[0]))]
        if many or rest[0].isdigit():
            rest = rest[1:]
        if not rest or rest[0] not in content.steps:
            word = rest[0] if rest else ""
            return f"no step '{word}' in '{block}' ({nearest(word, list(content.steps))})"
        return self._target(tuple(f"{block}.{number}.{rest[0]}" for number in rounds), rest[1:], many)

    def _target(self, names: tuple[str, ...], rest: tuple[str, ...], many: bool) -> Target | str:
        star = rest[-1:] == ("*",)
        picks = rest[:-1] if star else rest
        if "*" in picks:
            return "write * once, at the end"
        return Target(names, picks, star, many or star)
