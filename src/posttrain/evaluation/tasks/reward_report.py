"""What a reward model can be trusted with: where it ranks rightly, how sure it is, and what length has to do
with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from posttrain.common.config import DataRef
from posttrain.evaluation.facets import by_facet
from posttrain.evaluation.items import read_items
from posttrain.evaluation.task import EvalContext, ModelKind, Outcome, TaskConfig
from posttrain.evaluation.tasks.pair_accuracy import heard, mean_of
from posttrain.formats.rejects import RowError
from posttrain.models.heads import heads_for
from posttrain.records import Comparison, prompt_key
from posttrain.training.methods.pairs import encode_pairs

if TYPE_CHECKING:
    from posttrain.models.load import Model


@dataclass(frozen=True)
class Ranked:
    """A pair as the model has it: rewards and lengths (tokens) of chosen and rejected. apart: standard
    deviation of the members' margins.
    """

    rewards: tuple[float, float]
    lengths: tuple[int, int]
    apart: float | None = None

    @property
    def margin(self) -> float:
        return self.rewards[0] - self.rewards[1]

    @property
    def right(self) -> float:
        return 0.5 if self.margin == 0 else float(self.margin > 0)


class RewardReport(TaskConfig):
    """`accuracy` over all and apart by source, aspect and judge of the comparison, by the longer response's
    tokens, and by whether the judge chose the longer one; `margin`, chosen less rejected; `log_loss`,
    -log sigmoid(margin), in nats.

    `calibration_error`: how far the share ranked rightly is from sigmoid(|margin|), the model's own
    probability of that, over bins of it (expected calibration error, Guo et al., arXiv 1706.04599); it cannot
    be below 0, and chance alone lifts it where bins hold few pairs. `length_pearson`, `length_spearman`:
    correlation of reward with length over all responses. `prefers_longer`: share of pairs whose longer answer
    the model scores higher, beside `longer_chosen`, the judge's. `disagreement`: standard deviation of the
    members' margins, where an aspect has several heads.

    data: comparisons, not of the training rows. bins: of the probability, from 1/2 to 1. lengths: the bounds
    between classes of length, in tokens.
    """

    title: ClassVar[str] = "Reward model"
    headline: ClassVar[str] = "accuracy"
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"reward"})
    units: ClassVar[dict[str, str]] = {"log_loss": "nats"}
    amounts: ClassVar[frozenset[str]] = frozenset(
        {"margin", "disagreement", "calibration_error", "length_pearson", "length_spearman"}
    )
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"calibration_error", "log_loss"})
    undirected: ClassVar[frozenset[str]] = frozenset(
        {"length_pearson", "length_spearman", "prefers_longer", "longer_chosen", "disagreement", "margin"}
    )

    data: DataRef | list[DataRef]
    bins: int = Field(10, ge=1)
    lengths: tuple[int, ...] = (16, 64, 256, 1024)

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a comparison; what cannot be encoded, or is too long, is in the third state."""
        paths = [self.data] if isinstance(self.data, str) else self.data
        rows = ctx.take([row for path in paths for row in read_items(path, Comparison)])
        found = rank(ctx.model(), rows, ctx.label)
        scored = [(row, each) for row, each in zip(rows, found, strict=True) if isinstance(each, Ranked)]
        ranked = [each for _, each in scored]
        whole = iter(_whole(ranked, self.bins))
        parts = by_facet(rows)
        return [
            self._outcome(row, each, parts, next(whole) if isinstance(each, Ranked) else {})
            for row, each in zip(rows, found, strict=True)
        ]

    def _outcome(
        self,
        row: Comparison,
        found: Ranked | str,
        parts: Sequence[Callable[[Comparison], str]],
        whole: dict[str, float | None],
    ) -> Outcome:
        metrics: dict[str, float | None] = dict.fromkeys(("accuracy", "margin", "log_loss"))
        if isinstance(found, Ranked):
            loss = max(-found.margin, 0.0) + math.log1p(math.exp(-abs(found.margin)))
            metrics |= {"accuracy": found.right, "margin": found.margin, "log_loss": loss, **whole}
            if found.apart is not None:
                metrics["disagreement"] = found.apart
            metrics |= self._by_length(found)
        metrics |= {f"accuracy/{part(row)}": metrics["accuracy"] for part in parts}
        return Outcome(
            item=row.provenance.id,
            cluster=prompt_key(row.prompt),
            metrics=metrics,
            note="" if isinstance(found, Ranked) else found,
        )

    def _by_length(self, found: Ranked) -> dict[str, float | None]:
        longest, (chosen, rejected) = max(found.lengths), found.lengths
        above = [bound for bound in self.lengths if bound < longest]
        under = next((bound for bound in self.lengths if bound >= longest), None)
        name = f"{above[-1] + 1 if above else 1} to {under}" if under else f"over {above[-1]}"
        metrics: dict[str, float | None] = {f"accuracy/{name} tokens": found.right}
        if chosen != rejected:
            side = "longer" if chosen > rejected else "shorter"
            metrics[f"accuracy/{side} chosen"] = found.right
            metrics["longer_chosen"] = float(chosen > rejected)
            metrics["prefers_longer"] = found.right if chosen > rejected else 1 - found.right
        return metrics

    def figures(self, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        """The calibration curve: for each bin with pairs, the mean probability and the share ranked rightly
        with its interval.
        """
        from posttrain.evaluation.calibration import curve
        from posttrain.evaluation.compare import Point

        points = [
            (confidence(margin), Point(o.item, o.cluster, o.metrics["accuracy"]))
            for o in outcomes
            if (margin := o.metrics["margin"]) is not None
        ]
        return [{"kind": "calibration", "bins": curve(points, self.bins)}]


def confidence(margin: float) -> float:
    """The probability that the reward model gives to the response it prefers (Bradley and Terry)."""
    return 1 / (1 + math.exp(-min(abs(margin), 700)))


def rank(model: Model, rows: Sequence[Comparison], label: str) -> list[Ranked | str]:
    """Each comparison as the model has it, or why it could not be asked."""
    from posttrain.evaluation.open import reward_groups, too_long

    made = [
        heard(model, row) or each for row, each in zip(rows, encode_pairs(rows, model.template), strict=True)
    ]
    asked = [(row, each) for row, each in zip(rows, made, strict=True) if not isinstance(each, RowError)]
    scores = iter(reward_groups(model, [each.branches for _, each in asked], label))
    found: list[Ranked | str] = []
    for row, each in zip(rows, made, strict=True):
        if isinstance(each, RowError):
            found.append(str(each))
            continue
        pair = next(scores)
        if pair is None or not all(math.isfinite(score) for side in pair for score in side):
            found.append(too_long(model) if pair is None else "a reward that is not finite")
            continue
        heads = heads_for(model.aspects, row.aspect)
        gaps = [pair[0][head] - pair[1][head] for head in heads]
        found.append(
            Ranked(
                (mean_of(pair[0], heads), mean_of(pair[1], heads)),
                (sum(each.branches[0].mask), sum(each.branches[1].mask)),
                statistics.pstdev(gaps) if len(gaps) > 1 else None,
            )
        )
    return found


def _whole(ranked: Sequence[Ranked], bins: int) -> list[dict[str, float | None]]:
    """For each pair its share in the numbers that only all pairs together have: their means are these."""
    import numpy as np

    from posttrain.evaluation.calibration import error_shares
    from posttrain.evaluation.correlation import pearson_values, spearman_values

    if not ranked:
        return []
    sure, right = [confidence(each.margin) for each in ranked], [each.right for each in ranked]
    rewards = np.array([reward for each in ranked for reward in each.rewards])
    lengths = np.array([length for each in ranked for length in each.lengths], dtype=float)
    found: dict[str, np.ndarray | None] = {"calibration_error": error_shares(sure, right, bins)}
    for name, values in (("pearson", pearson_values), ("spearman", spearman_values)):
        both = values(rewards, lengths)  # of the two responses, whose mean is the pair's share
        found[f"length_{name}"] = None if both is None else (both[0::2] + both[1::2]) / 2
    return [
        {name: None if values is None else float(values[i]) for name, values in found.items()}
        for i in range(len(ranked))
    ]
