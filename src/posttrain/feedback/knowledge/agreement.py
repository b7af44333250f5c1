"""Whether attempts to answer a question agree: those to one about nothing should not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.feedback.alias_match import normalised
from posttrain.feedback.fact_grades import refuses
from posttrain.feedback.verifiers import found_last
from posttrain.records import Response


@dataclass(frozen=True)
class Agreement:
    """whole: attempts of which it is known what they say. most: how many of them give the commonest answer,
    `answer`; a refusal agrees with no other attempt.
    """

    whole: int
    most: int
    answer: str

    @property
    def share(self) -> float:
        """Of the whole attempts, those that give the commonest answer; 0 where there is none."""
        return self.most / self.whole if self.whole else 0.0


def agreement(attempts: Sequence[Response], pattern: str | None, refusals: Sequence[str]) -> Agreement:
    """pattern: finds the answer in an attempt, as of `alias_match`. Attempts that were cut off, and those in
    which it finds none, are left out: nobody knows what they say.
    """
    said: Counter[str] = Counter()
    refused = 0
    for attempt in attempts:
        if attempt.finish == "length":
            continue
        if refuses(attempt.text, refusals) is not None:
            refused += 1
        elif (answer := found_last(pattern, attempt.text)) is not None:
            said[normalised(answer)] += 1
    answer, most = said.most_common(1)[0] if said else ("", 0)
    return Agreement(said.total() + refused, most, answer)
