"""KTO: unpaired good and bad answers. Ethayarajh et al. (arXiv 2402.01306), section 4.1, equation 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from posttrain.common.errors import DataError
from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Rating, prompt_key, row_id
from posttrain.training.methods.base import LOGPS, REFERENCE, Batch, Example, Loss, Method, MethodConfig
from posttrain.training.methods.pairs import Said, answers, branch_of, said

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate

BOTH = -1.0  # the label of a comparison, which has a good and a bad answer


class KTO(MethodConfig):
    """beta: how soon the value of a gain or loss saturates. desirable_weight, undesirable_weight: λ_D, λ_U;
    the authors keep λ_D times the good answers over λ_U times the bad ones between 1 and 4/3.

    reference_point: z₀, the gain that counts as none: "mismatched" estimates KL(π‖π₀) from answers to other
    prompts, "zero" takes 0 (APO-zero's unpaired form, D'Oosterlinck et al., arXiv 2408.06266).
    good_above: for ratings without a label, the score of `aspect` from which on an answer is good.
    """

    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0)
    desirable_weight: float = Field(1.0, gt=0)
    undesirable_weight: float = Field(1.0, gt=0)
    reference_point: Literal["mismatched", "zero"] = "mismatched"
    good_above: float | None = None
    aspect: str = "overall"
    recommended_lr: ClassVar[float] = 1e-6

    @property
    def by_micro_batch(self) -> bool:
        """z₀ is a mean over a micro-batch, as published."""
        return self.reference_point == "mismatched"


def settle(cfg: KTO, rows: Sequence[Rating | Comparison]) -> KTO:
    """The config as it is. Raises DataError for training rows that KTO cannot learn from: all good or all bad
    (a `good_above` beyond all scores makes every answer bad, and would have the policy unlearn them all), or
    all to one prompt, so that the wanted reference point cannot be estimated.
    """
    labels = [label for row in rows if not isinstance(label := _label_of(cfg, row), RowError)]
    if labels and BOTH not in labels and len(set(labels)) == 1:
        raise DataError(
            f"kto: all {len(labels)} answers are {'good' if labels[0] else 'bad'}, and what it learns is a "
            "gain of good ones on bad ones; give answers of both (for scores, mend method.good_above), or "
            "use sft on good ones"
        )
    if rows and cfg.reference_point == "mismatched" and len({prompt_key(row.prompt) for row in rows}) == 1:
        raise DataError(
            f"kto: all {len(rows)} rows share one prompt, so no answer stands under another prompt and the "
            "reference point cannot be estimated; give rows of more prompts, or set method.reference_point: "
            "zero"
        )
    return cfg


def encode(cfg: KTO, rows: Sequence[Rating | Comparison], template: ChatTemplate) -> list[Example | RowError]:
    """A rating is one branch, a comparison two (good, bad); behind them, where the reference point wants
    one, an answer to another prompt.

    columns: label (1 good, 0 bad, BOTH).
    """
    labels = [_label_of(cfg, row) for row in rows]
    usable = [row for row, label in zip(rows, labels, strict=True) if not isinstance(label, RowError)]
    found = iter(_answers(usable, template))
    made = [label if isinstance(label, RowError) else next(found) for label in labels]
    strangers: list[Said | None] = [None] * len(rows)
    if cfg.reference_point == "mismatched":
        strangers = mismatched(rows, made)
    examples: list[Example | RowError] = []
    for row, label, own, stranger in zip(rows, labels, made, strangers, strict=True):
        if isinstance(own, RowError) or isinstance(label, RowError):
            examples.append(own if isinstance(own, RowError) else label)  # type: ignore[arg-type]
            continue
        branches = tuple(branch_of(each) for each in own)
        borrowed = 0
        if stranger is not None:
            branches += (branch_of(Said(own[0].prompt, stranger.response)),)
            borrowed = 1
        examples.append(Example(row.provenance.id, branches, {"label": label}, borrowed))
    return examples


def _label_of(cfg: KTO, row: Rating | Comparison) -> float | RowError:
    if isinstance(row, Comparison):
        return BOTH
    if row.label is not None:
        return float(row.label)
    if cfg.good_above is None:
        return RowError("label", "missing; method.good_above makes labels of scores")
    score = row.scores.get(cfg.aspect)
    if score is None:
        return RowError("label", f"missing, as is a score of '{cfg.aspect}' to make it from")
    return float(score >= cfg.good_above)


def _answers(
    rows: Sequence[Rating | Comparison], template: ChatTemplate
) -> list[tuple[Said, ...] | RowError]:
    """The tokens of each row's answers. Rows that cannot be rendered are found here, because the others need
    each other.
    """
    try:
        return said(rows, template)
    except DataError as e:
        if len(rows) == 1:
            return [RowError("prompt", str(e))]
        return [found for row in rows for found in _answers([row], template)]


def mismatched(
    rows: Sequence[Rating | Comparison], made: Sequence[tuple[Said, ...] | RowError]
) -> list[Said | None]:
    """For each row an answer that stands under another prompt and that nobody gave to its own; None where
    there is none.

    Which one depends on the ids of the rows alone.
    """
    keys = [prompt_key(row.prompt) for row in rows]
    texts = [tuple(response.text for response in answers(row)) for row in rows]
    given: dict[str, set[str]] = {}
    tokens: dict[str, set[tuple[int, ...]]] = {}
    for key, words, own in zip(keys, texts, made, strict=True):
        given.setdefault(key, set()).update(words)
        if not isinstance(own, RowError):
            tokens.setdefault(key, set()).update(tuple(each.response) for each in own)
    lenders = [
        (key, text, each)
        for key, words, own in zip(keys, texts, made, strict=True)
        if not isinstance(own, RowError)
        for text, each in zip(words, own, strict=True)
    ]
    found: list[Said | None] = []
    for row, key, own in zip(rows, keys, made, strict=True):
        draw = int(row_id("mismatched", row.provenance.id), 16)
        order = (lenders[(draw + step) % len(lenders)] for step in range(len(lenders)))
        strange = (
            each
            for other, text, each in order
            if other != key and text not in given[key] and tuple(each.response) not in tokens[key]
        )
        found.append(None if isinstance(own, RowError) else next(strange, None))
    return found


def loss(cfg: KTO, out: Output, batch: Batch) -> Loss:
    """λ - v(x, y) for each answer, with u = log π(y|x) - log π₀(y|x):

    good: λ_D (1 - s(β (u - z₀))); bad: λ_U (1 - s(β (z₀ - u))). items: [answers]; out.logps: [N].
    z₀ = max(0, mean of u over the mismatched pairs of this forest), or 0 where that is the reference point
    that is asked for; no gradient flows through it.
    """
    assert out.logps is not None
    forest = batch.forest
    ratio = forest.branch_sum(out.logps) - forest.branch_sum(batch.streams[REFERENCE])
    good, own, alone = _sides(batch.columns["label"], forest.tree_of)
    strange = ratio.detach()[~own] if cfg.reference_point == "mismatched" else ratio.new_zeros(0)
    z = strange.mean().clamp(min=0) if len(strange) else ratio.new_zeros(())
    gain = ratio[own] - z
    sign, weight = gain.new_full(good.shape, -1.0), gain.new_full(good.shape, cfg.undesirable_weight)
    sign[good], weight[good] = 1.0, cfg.desirable_weight
    items = weight * (1 - (cfg.beta * sign * gain).sigmoid())
    reward = cfg.beta * ratio[own].detach()
    metrics = {
        "accuracy": ((gain > 0) == good).float(),
        "reward_desirable": reward.where(good, float("nan")),
        "reward_undesirable": reward.where(~good, float("nan")),
        "logps_desirable": forest.branch_sum(out.logps.detach())[own].where(good, float("nan")),
        "logps_undesirable": forest.branch_sum(out.logps.detach())[own].where(~good, float("nan")),
    }
    if cfg.reference_point == "mismatched":
        metrics["kl"] = z.expand(len(items)) if len(strange) else items.detach() * float("nan")
        metrics["unmatched"] = alone.float()
    return Loss(items, items.new_ones(len(items)), metrics)


def _sides(label: Tensor, tree_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the branches are. label: [examples]; tree_of: [B], whose branch it is.

    Returns good: [answers] bool; own: [B] bool, an answer and not a mismatched pair; alone: [answers] bool,
    its row has no mismatched pair.
    """
    import torch

    counts = torch.bincount(tree_of, minlength=len(label))
    place = torch.arange(len(tree_of), device=tree_of.device) - (counts.cumsum(0) - counts)[tree_of]
    asked = torch.where(label == BOTH, 2, 1)
    own = place < asked[tree_of]
    good = (label[tree_of] == 1) | ((label[tree_of] == BOTH) & (place == 0))
    return good[own], own, (counts == asked)[tree_of][own]


METHOD = Method(
    KTO,
    data=(Rating, Comparison),
    needs=frozenset({LOGPS, REFERENCE}),
    encode=encode,
    at_once=True,
    loss=loss,
    settle=settle,
)
