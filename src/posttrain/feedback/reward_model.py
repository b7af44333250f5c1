"""The judge that a reward model is: its scalar heads, read at the last token of each response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from posttrain.common.config import Config, Runtime
from posttrain.common.errors import ConfigError
from posttrain.engines.token_writer import model_name
from posttrain.feedback.judge import Verdict
from posttrain.feedback.verdicts import NOT_FINITE
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.models.heads import SOLE_ASPECT, Standard, members_of
from posttrain.models.precision import Precision, pick_device, pick_dtype
from posttrain.models.spec import ModelSpec, SpecField
from posttrain.records import Prompt, Response, prompt_key

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.models.template import ChatTemplate


class RewardModel(Config):
    """Scores of a reward model; `parts` has every head's by its aspect.

    model: a folder, hub id or `@step`, or a mapping (ModelSpec). aspect: whose head gives the score; may be
    left out where there is one head, or one named "overall". normalise: rewards in standard deviations from
    the mean over what the model was trained on, as its training has written down; else as the heads give
    them, which are log-odds for a head trained by comparisons. micro_tokens: tokens of one forward (memory,
    not result).
    """

    model: SpecField
    aspect: str | None = None
    normalise: bool = False
    precision: Precision = "auto"
    micro_tokens: Annotated[int, Runtime(), Field(gt=0)] = 4096
    device: Annotated[str, Runtime()] = "auto"

    @property
    def label(self) -> str:
        return f"reward_model {model_name(self.model)}"

    def open(self) -> RewardModelJudge:
        """Raises ConfigError for a model that cannot be found, has no reward head, none of this aspect, or
        whose units are to be used and not known.
        """
        model = open_reward_model(self.model, self.precision, self.device)
        return RewardModelJudge(model, self.aspect, self.micro_tokens, self.normalise)


def open_reward_model(spec: ModelSpec, precision: Precision, device: str) -> Model:
    """Load it to judge with."""
    from posttrain.models.load import load_model

    where = pick_device(device)
    return load_model(spec, dtype=pick_dtype(precision, where), device=where)


@final
class RewardModelJudge:
    """Scores through the forest, so that the responses to one prompt share its computation.

    Raises ConfigError for a model without a reward head, or without one of this aspect.
    """

    def __init__(self, model: Model, aspect: str | None, micro_tokens: int, normalise: bool = False) -> None:
        self.model = model
        self.micro_tokens = micro_tokens
        self.aspect = _aspect(aspect, aspects_of(model), model.source)
        self.units = units_of(model, model.aspects) if normalise else None

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`; a response that was cut off, or is longer than the model takes, gets no answer."""
        found = head_scores(self.model, items, self.micro_tokens)
        return [each if isinstance(each, Verdict) else self._verdict(each) for each in found]

    def _verdict(self, scores: list[float]) -> Verdict:
        if self.units is not None:
            scores = [unit.of(score) for unit, score in zip(self.units, scores, strict=True)]
        parts = {
            aspect: score if math.isfinite(score) else None
            for aspect, score in zip(self.model.aspects, scores, strict=True)
        }
        return Verdict(parts[self.aspect], "" if parts[self.aspect] is not None else NOT_FINITE, parts)


def aspects_of(model: Model) -> tuple[str, ...]:
    """The names of its reward heads. Raises ConfigError where it has none."""
    if model.reward_head is None:
        raise ConfigError(
            f"{model.source} has no reward head, so it cannot judge; train one with the method 'reward'"
        )
    return model.aspects


def units_of(model: Model, aspects: Sequence[str]) -> list[Standard]:
    """How these heads' rewards lie over the training rows. Raises ConfigError where that was not written
    down.
    """
    unknown = [aspect for aspect in aspects if aspect not in model.standards]
    if unknown:
        raise ConfigError(
            f"{model.source} does not say how the rewards of {', '.join(unknown)} lie (heads.json, which "
            "training writes), so they cannot be normalised; train it with the method 'reward', or set "
            "normalise: false"
        )
    return [model.standards[aspect] for aspect in aspects]


def head_scores(
    model: Model, items: Sequence[tuple[Prompt, Response]], micro_tokens: int
) -> list[list[float] | Verdict]:
    """Each head's raw score of each response, on the model's own template; a verdict without a score for a
    response that was cut off, or is longer than the model takes.
    """
    from posttrain.models.forest import Branch, tree_of
    from posttrain.models.forward import SCORES, score_trees

    longest = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    found: list[list[float] | Verdict] = [CUT_OFF] * len(items)
    whole = [i for i, (_, response) in enumerate(items) if response.finish != "length"]
    rows = [(items[i][0], readable(items[i][1], model.template)) for i in whole]
    groups: dict[str, list[tuple[int, Branch]]] = {}
    for i, encoded in zip(whole, model.template.conversations(rows), strict=True):
        length = len(encoded.tokens)
        if longest and length > longest:
            found[i] = Verdict(None, f"longer than the judge takes: {length} of {longest} tokens")
            continue
        branch = Branch(encoded.tokens, encoded.mask)
        groups.setdefault(prompt_key(items[i][0]), []).append((i, branch))
    members = list(groups.values())
    trees = [tree_of([branch for _, branch in group]) for group in members]
    for g, _, out in score_trees(model, trees, frozenset({SCORES}), budget=micro_tokens, label="judge"):
        assert out.scores is not None
        for (i, _), scores in zip(members[g], out.scores.tolist(), strict=True):
            found[i] = scores
    return found


def readable(response: Response, template: ChatTemplate) -> Response:
    """The response with its sampled tokens where they are this tokenizer's, else as text alone.

    Rows do not say whose tokens they are; where they do not spell the row's text, they are another's.
    """
    if response.token_ids is None:
        return response
    if max(response.token_ids) < len(template.tokenizer):
        spelt = template.decode(response.token_ids)
        # A stop string ends the text before the tokens end.
        if spelt == response.text or (response.text and spelt.startswith(response.text)):
            return response
    return response.model_copy(update={"token_ids": None, "logps": None})


def _aspect(wanted: str | None, aspects: tuple[str, ...], source: str) -> str:
    if wanted is None:
        wanted = aspects[0] if len(aspects) == 1 else SOLE_ASPECT
    if wanted not in aspects:
        members = len(members_of(aspects, wanted))
        hint = f" of its own but {members} members of it (for reward_ensemble)" if members else ""
        raise ConfigError(
            f"{source} has no head for the aspect '{wanted}'{hint}; set aspect to one of {', '.join(aspects)}"
        )
    return wanted
