"""Reward model: Bradley-Terry on comparisons, with ratings and good/bad labels on the same scale.

Llama 2 (arXiv 2307.09288), section 3.2.2, for the margin; Eisenstein et al. (arXiv 2312.09244), section 2,
for centring; `scales` for the ratings; Coste et al. (arXiv 2310.02743) for ensembles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from posttrain.common.errors import DataError
from posttrain.formats.rejects import RowError
from posttrain.models.heads import SOLE_ASPECT, member_names
from posttrain.records import Comparison, Rating, row_id
from posttrain.training.methods.base import SCORES, Batch, Example, Loss, Method, MethodConfig
from posttrain.training.methods.pairs import branch_of, label_of, pair_columns, said
from posttrain.training.methods.scales import Scale, ordinal_loss, scale_of, squared_error, threshold

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forward import Output
    from posttrain.models.template import ChatTemplate


class Reward(MethodConfig):
    """heads: one reward head an aspect; a comparison trains the head of its own aspect, a rating the head of
    each aspect it has a score for. A rating's good/bad label trains "overall" (or the only head), where the
    rating has no score for it.

    margin: how much a unit of the judge's strength widens the wanted gap, m = margin * strength; 0 leaves
    it out.
    centring: weight of (r_chosen + r_rejected)^2, which pins the rewards' mean; 0 leaves it out.
    soft_labels: use the judge's probability where a comparison has one.
    ratings: regression, squared error on standardised scores; ordinal, proportional odds. rating_weight: of a
    score or label against a comparison. reliability: the share of the scores' variance that is the answer's
    and not the judge's noise, which fixes how many log-odds a standard deviation of them is.
    members: heads an aspect (`overall.0`, `overall.1`, …). bootstrap: each learns from its own resampling of
    the rows, which makes them differ; else they differ by their start alone.
    scales, label_threshold: how scores and labels lie; taken from the training rows where not given.
    """

    name: Literal["reward"] = "reward"
    heads: Annotated[tuple[str, ...], Field(min_length=1)] = (SOLE_ASPECT,)
    margin: float = Field(0.0, ge=0)
    centring: float = Field(0.01, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = False
    ratings: Literal["regression", "ordinal"] = "regression"
    rating_weight: float = Field(1.0, gt=0)
    reliability: float = Field(0.5, ge=0, lt=1)
    members: int = Field(1, ge=1)
    bootstrap: bool = True
    scales: dict[str, Scale] | None = None
    label_threshold: float | None = None
    recommended_lr: ClassVar[float] = 1e-5

    @field_validator("heads")
    @classmethod
    def _told_apart(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        for head in heads:
            if not head.strip():
                raise ValueError("a head needs a name, the aspect it is for")
            if heads.count(head) > 1:
                raise ValueError(f"'{head}' stands twice; several heads of one aspect are `members`")
            if re.search(r"\.\d+$", head):
                raise ValueError(f"'{head}' is how a member of an aspect is called; give it another name")
        return heads

    def aspects(self) -> tuple[str, ...]:
        return tuple(name for head in self.heads for name in member_names(head, self.members))

    @property
    def labelled(self) -> str | None:
        """The head that labels train."""
        return SOLE_ASPECT if SOLE_ASPECT in self.heads else self.heads[0] if len(self.heads) == 1 else None


def settle(cfg: Reward, rows: Sequence[Comparison | Rating]) -> Reward:
    """With the scales of the training rows' scores and labels, where the config gives none.

    Raises DataError for a head that no row trains, and for scores or labels that are all the same.
    """
    _refuse_untrained(cfg, rows)
    ratings = [row for row in rows if isinstance(row, Rating)]
    scales = dict(cfg.scales or {})
    for head in cfg.heads:
        scores = [score for row in ratings if (score := row.scores.get(head)) is not None]
        if scores and head not in scales:
            scales[head] = scale_of(head, scores, cfg.ratings == "ordinal", cfg.reliability)
    bad = [not row.label for row in ratings if row.label is not None]
    cut = cfg.label_threshold
    if bad and cut is None:
        _refuse_one_label(cfg, ratings)
        cut = threshold(sum(bad) / len(bad), cfg.reliability)
    return cfg.model_copy(update={"scales": scales or None, "label_threshold": cut})


def _refuse_untrained(cfg: Reward, rows: Sequence[Comparison | Rating]) -> None:
    trained: set[str | None] = set()
    for row in rows:
        if isinstance(row, Comparison):
            trained.add(row.aspect)
        else:
            trained |= {aspect for aspect, score in row.scores.items() if score is not None}
            trained |= {cfg.labelled} if row.label is not None else set()
    for head in cfg.heads:
        if rows and head not in trained:
            raise DataError(
                f"method.heads: not one of the {len(rows)} training rows compares or rates '{head}', so its "
                "head would stay as random as it starts; leave it out, or give rows for it"
            )


def _refuse_one_label(cfg: Reward, ratings: Sequence[Rating]) -> None:
    """Of those that train a head: a label is put aside where its row has a score."""
    if cfg.labelled is None:
        return
    labels = [r.label for r in ratings if r.label is not None and r.scores.get(cfg.labelled) is None]
    if len(set(labels)) == 1:
        raise DataError(
            f"ratings: all {len(labels)} labels are {'good' if labels[0] else 'bad'}, which teaches nothing; "
            "give ratings of both, or leave these out"
        )


def encode(
    cfg: Reward, rows: Sequence[Comparison | Rating], template: ChatTemplate
) -> list[Example | RowError]:
    """columns: head (NaN for a rating), strength, probability; score/<aspect>, label where the config has a
    scale for them; count/<member>, how often a bootstrap has drawn the row.
    """
    examples: list[Example | RowError] = []
    for row, made in zip(rows, said(rows, template), strict=True):
        columns = made if isinstance(made, RowError) else _columns(cfg, row)
        if isinstance(made, RowError) or isinstance(columns, RowError):
            examples.append(columns)  # type: ignore[arg-type]  # then it is the reason
            continue
        id = row.provenance.id
        drawn = {f"count/{m}": float(_drawn(id, m)) for m in range(cfg.members) if _resampled(cfg)}
        examples.append(Example(id, tuple(branch_of(each) for each in made), columns | drawn))
    return examples


def _columns(cfg: Reward, row: Comparison | Rating) -> dict[str, float] | RowError:
    nothing = dict.fromkeys(_said_of_ratings(cfg), math.nan)
    if isinstance(row, Rating):
        return _rating_columns(cfg, row, nothing)
    if cfg.margin and row.strength is None:
        return RowError("strength", "missing, but method.margin asks for it")
    if row.aspect not in cfg.heads:
        return RowError("aspect", f"'{row.aspect}' has no head (method.heads: {', '.join(cfg.heads)})")
    return nothing | pair_columns(row) | {"head": float(cfg.heads.index(row.aspect))}


def _said_of_ratings(cfg: Reward) -> list[str]:
    return [f"score/{aspect}" for aspect in cfg.scales or {}] + ["label"] * (cfg.label_threshold is not None)


def _rating_columns(cfg: Reward, row: Rating, nothing: Mapping[str, float]) -> dict[str, float] | RowError:
    found = dict.fromkeys(("head", "strength", "probability"), math.nan) | dict(nothing)
    given = {aspect: score for aspect in cfg.heads if (score := row.scores.get(aspect)) is not None}
    for aspect, score in given.items():
        scale = (cfg.scales or {}).get(aspect)
        if scale is None:
            return RowError(f"scores.{aspect}", "no training row has a score for this aspect")
        place = scale.place(score)
        if place is None:
            return RowError(f"scores.{aspect}", f"{score} is no level of the training rows ({scale.levels})")
        found[f"score/{aspect}"] = place
    if row.label is not None and cfg.labelled is not None and cfg.labelled not in given:
        if cfg.label_threshold is None:
            return RowError("label", "no training row has a label")
        found["label"] = float(row.label)
    elif not given:
        return RowError("scores", f"neither a score nor a label for any head ({', '.join(cfg.heads)})")
    return found


def _resampled(cfg: Reward) -> bool:
    return cfg.members > 1 and cfg.bootstrap


def _drawn(row: str, member: int) -> int:
    """A draw from the Poisson distribution of mean 1, which is how often a bootstrap draws one of many rows
    (Oza and Russell 2001), by the row's id and the member's number alone.
    """
    u = int(row_id("bootstrap", row, member), 16) / 2**64
    count, share = 0, math.exp(-1)
    while u >= share and count < 20:
        u -= share
        count += 1
        share /= count
    return count


def loss(cfg: Reward, out: Output, batch: Batch) -> Loss:
    """A comparison costs -p log s(d) - (1 - p) log s(-d) + centring (r_c + r_r)^2, with d = r_c - r_r - m; a
    score, `rating_weight` times squared error or -log P(level); a label, that times -log s(±(r - threshold)).

    items: [(pairs + scores + labels) * members], times the row's count in the member's bootstrap.
    out.scores: [B, heads * members].
    """
    import torch

    assert out.scores is not None
    columns, head = batch.columns, batch.columns["head"]
    per_head = out.scores.unflatten(1, (len(cfg.heads), cfg.members))
    sizes = torch.bincount(batch.forest.tree_of, minlength=len(head))
    first = sizes.cumsum(0) - sizes  # each example's first branch
    terms: list[tuple[Tensor, Tensor, float, dict[str, Tensor]]] = []
    pairs = (~head.isnan()).nonzero().squeeze(1)
    if len(pairs):
        of = head[pairs].long()
        made = _pair_terms(cfg, per_head[first[pairs], of], per_head[first[pairs] + 1, of], columns, pairs)
        terms.append((pairs, made[0], 1.0, made[1]))
    for name in _said_of_ratings(cfg):
        rows = (~columns[name].isnan()).nonzero().squeeze(1)
        if len(rows):
            aspect = cfg.labelled if name == "label" else name.removeprefix("score/")
            reward = per_head[first[rows], cfg.heads.index(aspect or "")]
            made = _rating_terms(cfg, name, reward, columns[name][rows])
            terms.append((rows, made[0], cfg.rating_weight, made[1]))
    return _together(cfg, terms, columns)


def _pair_terms(
    cfg: Reward, chosen: Tensor, rejected: Tensor, columns: Mapping[str, Tensor], pairs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Costs and metrics of comparisons. chosen, rejected: [pairs, members]."""
    from torch.nn.functional import logsigmoid

    gap = chosen - rejected
    if cfg.margin:
        gap = gap - cfg.margin * columns["strength"][pairs][:, None]
    label = label_of(columns["probability"][pairs], cfg.soft_labels, cfg.label_smoothing)[:, None]
    items = -label * logsigmoid(gap) - (1 - label) * logsigmoid(-gap)
    if cfg.centring:
        items = items + cfg.centring * (chosen + rejected) ** 2
    metrics = {
        "accuracy": (chosen > rejected).float(),
        "reward_margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }
    if cfg.members > 1:
        apart = (chosen - rejected).std(1, correction=0, keepdim=True)
        metrics["disagreement"] = apart.expand_as(items)
    return items, metrics


def _rating_terms(cfg: Reward, name: str, reward: Tensor, said: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Costs and metrics of one aspect's scores, or of labels. reward: [rows, members]; said: [rows]."""
    from torch.nn.functional import logsigmoid

    if name == "label":
        assert cfg.label_threshold is not None
        over, good = reward - cfg.label_threshold, said[:, None] == 1
        right = ((over > 0) == good).float()
        return -logsigmoid(over.where(good, -over)), {"label_accuracy": right}
    scale = (cfg.scales or {})[name.removeprefix("score/")]
    if scale.levels:
        items = ordinal_loss(reward, said, scale.thresholds)
    else:
        items = squared_error(reward, said, cfg.reliability)
    return items, {"score_loss": items}


def _together(
    cfg: Reward,
    terms: Sequence[tuple[Tensor, Tensor, float, dict[str, Tensor]]],
    columns: Mapping[str, Tensor],
) -> Loss:
    """All terms, each (rows, costs [rows, members], weight, metrics), as one; a metric is NaN for the terms
    that have none of it.
    """
    import torch

    weights = torch.cat([torch.full_like(costs, weight / cfg.members) for _, costs, weight, _ in terms])
    items = torch.cat([costs for _, costs, _, _ in terms])
    if _resampled(cfg):
        drawn = torch.stack([columns[f"count/{m}"] for m in range(cfg.members)], 1)
        items = items * torch.cat([drawn[rows] for rows, _, _, _ in terms])
    metrics = {}
    for name in dict.fromkeys(name for *_, found in terms for name in found):
        parts = [found.get(name, torch.full_like(costs, math.nan)).detach() for _, costs, _, found in terms]
        metrics[name] = torch.cat(parts).flatten()
    return Loss(items.flatten(), weights.flatten(), metrics)


METHOD = Method(
    Reward,
    data=(Comparison, Rating),
    needs=frozenset({SCORES}),
    encode=encode,
    loss=loss,
    settle=settle,
)
