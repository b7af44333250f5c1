"""What a judge can be trusted with: how often it agrees with labels, how sure it is, and whether it looks at
the place instead of the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from posttrain.common.config import DataRef
from posttrain.evaluation.facets import by_facet
from posttrain.evaluation.items import read_items
from posttrain.evaluation.task import EvalContext, ModelKind, Outcome, TaskConfig
from posttrain.feedback.judge import Judge, PairJudge, Preference
from posttrain.feedback.judge_use import JudgeField
from posttrain.feedback.labelled import asked_of, by_aspect, right
from posttrain.feedback.position import first_wins, flipped
from posttrain.feedback.verdicts import score_by, verdicts_of
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.records import Comparison, prompt_key


class JudgeReport(TaskConfig):
    """A judge against comparisons labelled by people or an oracle. The model is not asked: name any.

    `agreement`: the share of pairs in which the judge prefers what the label chose, its ties one half, over
    those to which it gave an answer; again by source, aspect and labeller. `answered`: over all. `ties`: of
    those answered. `confidence`: the judge's probability of what it prefers, for one that compares, and
    `calibration_error`, how far agreement is from it over bins (expected calibration error, Guo et al.,
    arXiv 1706.04599). Of a judge that asks both ways round also `flips`, the share of pairs of which each
    order favours another response, and `first_wins`, the share of orders in which what stands first is
    favoured: 1/2 where the place means nothing.

    data: comparisons. judge: any; one that compares is shown the two in an order left to chance. aspect:
    "overall", or a part of what the judge says. bins: of the probability, from 1/2 to 1.
    """

    title: ClassVar[str] = "Judge against labels"
    headline: ClassVar[str] = "agreement"
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"policy", "reward"})
    amounts: ClassVar[frozenset[str]] = frozenset({"calibration_error", "confidence"})
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"calibration_error", "flips"})
    undirected: ClassVar[frozenset[str]] = frozenset({"confidence", "first_wins", "ties"})

    data: DataRef | list[DataRef]
    judge: JudgeField
    aspect: str = "overall"
    bins: int = Field(10, ge=1)

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a comparison; where the judge gave no answer, it is in the third state."""
        paths = [self.data] if isinstance(self.data, str) else self.data
        rows = ctx.take([row for path in paths for row in read_items(path, Comparison)])
        judge = self.judge.open(ctx.account)
        facets = by_facet(rows)
        if not isinstance(judge, PairJudge):
            scored = self._scored(judge, rows)
            return [self._outcome(row, each, facets) for row, each in zip(rows, scored, strict=True)]
        said = by_aspect(asked_of(judge, rows, ctx.seed, f"judge '{self.judge.name}'"), self.aspect)
        made = [self._outcome(row, each, facets) for row, each in zip(rows, said, strict=True)]
        return _with_errors(made, said, self.bins)

    def _scored(self, judge: Judge, rows: Sequence[Comparison]) -> list[Preference]:
        """The same of a judge that scores each alone: a winner, without a probability in between."""
        items = [(row.prompt, side) for row in rows for side in (row.chosen, row.rejected)]
        whole = [item for item in items if item[1].finish != "length"]
        said = iter(verdicts_of(judge, whole, f"judge '{self.judge.name}'"))
        every = iter([next(said) if item[1].finish != "length" else CUT_OFF for item in items])
        made = []
        for _ in rows:
            both = [score_by(verdict, self.aspect) for verdict in (next(every), next(every))]
            chosen, rejected = (verdict.score for verdict in both)
            if chosen is None or rejected is None:
                made.append(Preference(None, next(v.reason for v in both if v.score is None)))
            else:
                made.append(Preference(0.5 if chosen == rejected else float(chosen > rejected)))
        return made

    def _outcome(
        self, row: Comparison, said: Preference, facets: Sequence[Callable[[Comparison], str]]
    ) -> Outcome:
        p = said.probability
        metrics: dict[str, float | None] = {
            "agreement": None if p is None else right(p),
            "answered": float(p is not None),
            "ties": None if p is None else float(p == 0.5),
        }
        if said.orders is not None:
            metrics |= {"flips": float(flipped(said.orders)), "first_wins": first_wins(said.orders)}
        apart = [name for name in ("agreement", "flips") if name in metrics]
        metrics |= {f"{name}/{facet(row)}": metrics[name] for facet in facets for name in apart}
        return Outcome(
            item=row.provenance.id,
            cluster=prompt_key(row.prompt),
            metrics=metrics,
            prompt=row.prompt.text,
            note=said.reason,
        )

    def figures(self, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        """The calibration curve of a judge that compares."""
        from posttrain.evaluation.calibration import curve
        from posttrain.evaluation.compare import Point

        points = [
            (confidence, Point(o.item, o.cluster, o.metrics["agreement"]))
            for o in outcomes
            if (confidence := o.metrics.get("confidence")) is not None
        ]
        return [{"kind": "calibration", "bins": curve(points, self.bins)}] if points else []


def _with_errors(outcomes: Sequence[Outcome], said: Sequence[Preference], bins: int) -> list[Outcome]:
    """With each answered pair's confidence, and its share in the calibration error."""
    from posttrain.evaluation.calibration import error_shares

    known = [p for each in said if (p := each.probability) is not None]
    sure = [max(p, 1 - p) for p in known]
    told = iter(zip(sure, error_shares(sure, [right(p) for p in known], bins), strict=True))
    made = []
    for outcome, each in zip(outcomes, said, strict=True):
        confidence, error = (None, None) if each.probability is None else next(told)
        more = {"confidence": confidence, "calibration_error": None if error is None else float(error)}
        made.append(replace(outcome, metrics={**outcome.metrics, **more}))
    return made
