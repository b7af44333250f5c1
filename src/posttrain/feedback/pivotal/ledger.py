"""What the search cost: rollouts, tokens, calls of the judge, time, and all that by the pivot it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """counts: by name, and by "name: phase" where a phase is known. seconds: by what they went to."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    levels: int = 0

    def book(self, counts: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        self.counts.update(counts)
        self.seconds.update(seconds)

    def told(self, pivots: int, pairs: int) -> dict[str, Any]:
        """All of it, and what a confirmed pivot cost; None where there is none."""
        counts = self.counts
        spent = {
            "levels": self.levels,
            "rollouts": counts["rollouts"],
            "rollouts_by_phase": self._by_phase("rollouts"),
            "oracle_calls": counts["oracle_calls"],
            "tokens_decoded": counts["tokens_decoded"],
            "tokens_prefilled": counts["tokens_prefilled"],
            "tokens_prefilled_if_not_shared": counts["tokens_prefilled_if_not_shared"],
            "cut_off": counts["cut_off"],
            "no_answer": counts["no_answer"],
            "no_answer_reasons": self._reasons(),
            "outcomes_reused": counts["outcomes_reused"],
            "seconds_generating": round(self.seconds["generating"], 3),
            "seconds_judging": round(self.seconds["judging"], 3),
        }
        wall = self.seconds["generating"] + self.seconds["judging"]
        each = None
        if pivots:
            names = ("rollouts", "oracle_calls", "tokens_decoded", "tokens_prefilled")
            each = {name: round(counts[name] / pivots, 1) for name in names}
            each["seconds"] = round(wall / pivots, 3)
        return spent | {"confirmed_pivots": pivots, "pairs": pairs, "a_confirmed_pivot": each}

    def _reasons(self) -> dict[str, int]:
        opening = "no_answer: "
        found = {k.removeprefix(opening): n for k, n in self.counts.items() if k.startswith(opening)}
        return dict(Counter(found).most_common(5))

    def _by_phase(self, name: str) -> dict[str, int]:
        return {phase: self.counts[f"{name}: {phase}"] for phase in ("filter", "search", "confirm")}


def shared_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of all sequences together, those that several have from the start counted once."""
    total = 0
    before: tuple[int, ...] = ()
    for own in sorted({tuple(each) for each in sequences}):
        same = next((i for i, (a, b) in enumerate(zip(own, before, strict=False)) if a != b), None)
        total += len(own) - (min(len(own), len(before)) if same is None else same)
        before = own
    return total
