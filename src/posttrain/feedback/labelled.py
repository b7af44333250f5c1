"""A judge asked about pairs that are labelled."""

from __future__ import annotations

import random
from collections.abc import Sequence

from posttrain.feedback.judge import PairJudge, Preference
from posttrain.feedback.verdicts import preference_by, preferences_of
from posttrain.records import Comparison, row_id


def asked_of(judge: PairJudge, rows: Sequence[Comparison], seed: int, name: str) -> list[Preference]:
    """The preference for chosen over rejected in each row; which of the two stands first is left to chance.

    name: whose, as an error calls it (`judge 'llm'`).
    """
    swapped = [random.Random(row_id(seed, row.provenance.id)).random() < 0.5 for row in rows]
    asked = [
        (row.prompt, row.rejected, row.chosen) if swap else (row.prompt, row.chosen, row.rejected)
        for row, swap in zip(rows, swapped, strict=True)
    ]
    said = preferences_of(judge, asked, name)
    return [_turned(each) if swap else each for each, swap in zip(said, swapped, strict=True)]


def by_aspect(said: Sequence[Preference], aspect: str) -> list[Preference]:
    return [preference_by(each, aspect) for each in said]


def right(probability: float) -> float:
    """Whether the label's choice is preferred, a tie being one half. probability: that it is better."""
    return 0.5 if probability == 0.5 else float(probability > 0.5)


def _turned(preference: Preference) -> Preference:
    """The same said of the two in the other order."""
    p, orders = preference.probability, preference.orders
    return Preference(
        None if p is None else 1 - p,
        preference.reason,
        {name: _turned(part) for name, part in preference.parts.items()},
        None if orders is None else (1 - orders[1], 1 - orders[0]),
    )
