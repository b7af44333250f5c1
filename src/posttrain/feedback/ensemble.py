"""Several reward models, or several heads of one, as one judge that knows how far they disagree."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, final

from pydantic import Field, model_validator

from posttrain.common.config import Config, Runtime
from posttrain.common.errors import ConfigError
from posttrain.engines.token_writer import model_name
from posttrain.feedback.judge import Verdict
from posttrain.feedback.reward_model import (
    aspects_of,
    head_scores,
    open_reward_model,
    units_of,
)
from posttrain.feedback.verdicts import NOT_FINITE
from posttrain.models.heads import heads_for, members_of
from posttrain.models.precision import Precision
from posttrain.models.spec import SpecField
from posttrain.records import Prompt, Response

if TYPE_CHECKING:
    from posttrain.models.load import Model

Combine = Literal["mean", "min", "lcb"]
DISAGREEMENT = "disagreement"


class RewardEnsemble(Config):
    """One reward from many: of several models, of the members an aspect has in one model, or both.

    combine: their mean, the least of them (min), or mean - penalty * standard deviation (lcb, a lower
    confidence bound; Coste et al., arXiv 2310.02743, take the variance in its place). An ensemble makes
    overoptimisation rarer and does not end it (Eisenstein et al., arXiv 2312.09244).
    models: one or more, each judging on its own template. aspect: as in `reward_model`; every model gives the
    heads it has for it. normalise: compare members in standard deviations from their means over what they
    were trained on, without which one of a wider scale counts for more. keep: hold all models in memory; else
    one at a time, loaded for every call.

    `parts` has each member's score and their disagreement, the standard deviation among them. Where one
    member has no answer there is none.
    """

    models: Annotated[tuple[SpecField, ...], Field(min_length=1)]
    aspect: str | None = None
    combine: Combine = "mean"
    penalty: float = Field(1.0, ge=0)
    normalise: bool = True
    precision: Precision = "auto"
    keep: Annotated[bool, Runtime()] = True
    micro_tokens: Annotated[int, Runtime(), Field(gt=0)] = 4096
    device: Annotated[str, Runtime()] = "auto"

    @model_validator(mode="after")
    def _penalty_of_lcb(self) -> RewardEnsemble:
        if self.penalty != type(self).model_fields["penalty"].default and self.combine != "lcb":
            raise ValueError(f"penalty goes with combine: lcb, not {self.combine}")
        return self

    @property
    def label(self) -> str:
        return f"reward_ensemble {', '.join(self.names)} ({self.combine})"

    @property
    def names(self) -> list[str]:
        """The models' names, told apart by number."""
        plain = [model_name(spec) for spec in self.models]
        return [
            name if plain.count(name) == 1 else f"{name} {plain[: i + 1].count(name)}"
            for i, name in enumerate(plain)
        ]

    def open(self) -> EnsembleJudge:
        """Raises ConfigError for a model that cannot judge, as `reward_model` does; with `keep: false`, when
        it is first asked.
        """
        return EnsembleJudge(self)


@final
class EnsembleJudge:
    """Raises ConfigError for a single member, which cannot disagree with itself."""

    def __init__(self, cfg: RewardEnsemble) -> None:
        self.cfg = cfg
        self.kept = [self._load(i) for i in range(len(cfg.models))] if cfg.keep else None
        if self.kept is not None:
            _refuse_one([heads for model in self.kept for heads in self._heads(model)])

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`."""
        members: dict[str, list[float | Verdict]] = {}
        for i, name in enumerate(self.cfg.names):
            model = self.kept[i] if self.kept is not None else self._load(i)
            members |= self._members(model, name, items)
            if self.kept is None:
                del model
                gc.collect()
        _refuse_one(list(members))
        return [
            combined(
                {name: scores[k] for name, scores in members.items()}, self.cfg.combine, self.cfg.penalty
            )
            for k in range(len(items))
        ]

    @property
    def models(self) -> list[Model]:
        """Those held in memory between two calls; see `models_of`."""
        return list(self.kept or ())

    def _load(self, i: int) -> Model:
        return open_reward_model(self.cfg.models[i], self.cfg.precision, self.cfg.device)

    def _heads(self, model: Model) -> list[int]:
        aspects = aspects_of(model)
        wanted = self.cfg.aspect
        heads = heads_for(aspects, None) if wanted is None else members_of(aspects, wanted)
        if not heads:
            what = "'overall'" if wanted is None else f"the aspect '{wanted}'"
            raise ConfigError(f"{model.source} has no head for {what}; its heads: {', '.join(aspects)}")
        return heads

    def _members(
        self, model: Model, name: str, items: Sequence[tuple[Prompt, Response]]
    ) -> dict[str, list[float | Verdict]]:
        heads = self._heads(model)
        aspects = [model.aspects[head] for head in heads]
        units = units_of(model, aspects) if self.cfg.normalise else None
        found = head_scores(model, items, self.cfg.micro_tokens)
        made: dict[str, list[float | Verdict]] = {}
        for k, (head, aspect) in enumerate(zip(heads, aspects, strict=True)):
            of = units[k].of if units else float
            made[f"{name}/{aspect}"] = [
                scores if isinstance(scores, Verdict) else of(scores[head]) for scores in found
            ]
        return made


def combined(members: Mapping[str, float | Verdict], combine: Combine, penalty: float) -> Verdict:
    """One verdict of what each member said of a response: its score, or a verdict without one."""
    parts = {
        name: said if not isinstance(said, Verdict) and math.isfinite(said) else None
        for name, said in members.items()
    }
    scores = [score for score in parts.values() if score is not None]
    if len(scores) < len(parts):
        name = next(name for name, score in parts.items() if score is None)
        said = members[name]
        reason = said.reason if isinstance(said, Verdict) else NOT_FINITE
        return Verdict(None, f"{name}: {reason}", {**parts, DISAGREEMENT: None})
    mean = sum(scores) / len(scores)
    apart = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    reward = {"mean": mean, "min": min(scores), "lcb": mean - penalty * apart}[combine]
    return Verdict(reward, "", {**parts, DISAGREEMENT: apart})


def _refuse_one(members: Sequence[object]) -> None:
    if len(members) < 2:
        raise ConfigError(
            "reward_ensemble has a single member; give more models, one with several heads of the aspect "
            "(method.members of 'reward'), or use reward_model"
        )
