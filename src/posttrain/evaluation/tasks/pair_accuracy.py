"""How often a model ranks a held-out comparison as its judge did."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from posttrain.common.config import DataRef, ModelRef
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, ModelKind, Outcome, TaskConfig
from posttrain.formats.rejects import RowError
from posttrain.models.heads import heads_for
from posttrain.records import Comparison, prompt_key
from posttrain.training.methods.pairs import encode_pairs

if TYPE_CHECKING:
    from posttrain.models.forest import Branch
    from posttrain.models.load import Model

Pair = tuple[float, float]  # scores of chosen and rejected


class PairAccuracy(TaskConfig):
    """The share of comparisons whose chosen response scores higher than the rejected one; equal scores count
    half.

    A reward model's score is that of the head of the comparison's aspect, or the mean of its members; where
    all heads are of one aspect, theirs.
    A policy's is its log-probability of the response, summed or
    averaged over tokens (`over`), less that under `reference` where one is given: the implicit reward of DPO
    without its factor β, which changes no ranking (arXiv:2305.18290, section 4). `margin` is chosen minus
    rejected.

    data: comparisons. reference: the model a policy was trained from. group_by: a tag of the prompt; results
    are also given for each of its values.
    """

    title: ClassVar[str] = "Pairs ranked rightly"
    headline: ClassVar[str] = "accuracy"
    kinds: ClassVar[frozenset[ModelKind]] = frozenset({"policy", "reward"})
    amounts: ClassVar[frozenset[str]] = frozenset({"margin"})

    data: DataRef
    reference: ModelRef | None = None
    over: Literal["sum", "mean"] = "sum"
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome a comparison; what cannot be encoded, or is too long, is in the third state."""
        rows = ctx.take(read_items(self.data, Comparison))
        scores = self._scores(rows, ctx.model(), ctx.label)
        if self.reference is not None and ctx.kind() == "policy":
            base = self._scores(rows, ctx.model_at(self.reference), ctx.label)
            scores = [_less(a, b) for a, b in zip(scores, base, strict=True)]
        return [self._outcome(row, found) for row, found in zip(rows, scores, strict=True)]

    def _scores(self, rows: list[Comparison], model: Model, label: str) -> list[Pair | str]:
        """Scores a row, or why there are none."""
        from posttrain.evaluation.open import too_long

        made = encode_pairs(rows, model.template)
        made = [heard(model, row) or example for row, example in zip(rows, made, strict=True)]
        usable = [example.branches for example in made if not isinstance(example, RowError)]
        heads = [
            heads_for(model.aspects, row.aspect)
            for row, example in zip(rows, made, strict=True)
            if not isinstance(example, RowError)
        ]
        scored = iter(self._score(model, usable, heads, label))
        return [
            str(example) if isinstance(example, RowError) else next(scored) or too_long(model)
            for example in made
        ]

    def _score(
        self, model: Model, groups: list[tuple[Branch, ...]], heads: list[list[int]], label: str
    ) -> list[Pair | None]:
        from posttrain.evaluation.open import reward_groups, score_groups

        if model.reward_head is not None:
            given = zip(reward_groups(model, groups, label), heads, strict=True)
            return [(mean_of(pair[0], of), mean_of(pair[1], of)) if pair else None for pair, of in given]
        found = []
        for pair in score_groups(model, groups, label):
            per = [path.logp if self.over == "sum" else path.logp / path.tokens for path in pair or ()]
            found.append((per[0], per[1]) if per else None)
        return found

    def _outcome(self, row: Comparison, found: Pair | str) -> Outcome:
        margin = None if isinstance(found, str) else found[0] - found[1]
        accuracy = None if margin is None else 0.5 if margin == 0 else float(margin > 0)
        return Outcome(
            item=row.provenance.id,
            cluster=prompt_key(row.prompt),
            metrics={"accuracy": accuracy, "margin": margin},
            group=group_of(row.prompt, self.group_by),
            note=found if isinstance(found, str) else "equal scores" if margin == 0 else "",
        )


def heard(model: Model, row: Comparison) -> RowError | None:
    """Why none of a reward model's several heads can rank a comparison; None where one can."""
    if model.reward_head is None or heads_for(model.aspects, row.aspect):
        return None
    return RowError("aspect", f"'{row.aspect}' has no head (the model's: {', '.join(model.aspects)})")


def mean_of(scores: list[float], heads: list[int]) -> float:
    """The mean score of some of the heads."""
    return sum(scores[head] for head in heads) / len(heads)


def _less(a: Pair | str, b: Pair | str) -> Pair | str:
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b
    return a[0] - b[0], a[1] - b[1]
