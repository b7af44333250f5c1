"""`Subdivide` of the Phi-4 report (arXiv:2412.08905, figure 4), level by level.

As published it goes depth first. Here all stretches that are open stand side by side, so that what must be
known about them can be found out together; which stretches are split does not depend on the order.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Stretch:
    """Tokens `start` up to `stop` of a response, at least one. It changes p(success) from what it is after
    `start` tokens to what it is after `stop`.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def split(stretch: Stretch, logps: Sequence[float]) -> tuple[Stretch, Stretch]:
    """Two parts, neither empty, whose summed log-probabilities are as equal as can be; of two such cuts the
    first. Where every token was certain, halves.

    logps: of all the response's tokens. Raises ValueError for a single token.
    """
    if len(stretch) < 2:
        raise ValueError("a single token cannot be split")
    sums = list(accumulate(logps[stretch.start : stretch.stop]))
    if sums[-1] == 0:
        cut = len(stretch) // 2
    else:
        cut = min(range(1, len(stretch)), key=lambda k: abs(sums[k - 1] - sums[-1] / 2))
    middle = stretch.start + cut
    return Stretch(stretch.start, middle), Stretch(middle, stretch.stop)


def subdivide(logps: Sequence[float]) -> Generator[list[Stretch], Sequence[bool | None], list[int]]:
    """Yields the open stretches of a response; is sent, for each, whether p changes across it by the gap or
    more, None where that is not known yet. Returns the places of the pivotal tokens, in order.

    A stretch across which p changes by less is not looked into: a rise and a fall within it stay unseen, as
    the report says of its algorithm (it finds all pivots where p is near-monotone).
    """
    open_ = [Stretch(0, len(logps))]
    pivots: list[int] = []
    while open_:
        said = yield open_
        after: list[Stretch] = []
        for stretch, changes in zip(open_, said, strict=True):
            if changes is None:
                after.append(stretch)
            elif changes and len(stretch) == 1:
                pivots.append(stretch.start)
            elif changes:
                after += split(stretch, logps)
        open_ = after
    return sorted(pivots)
