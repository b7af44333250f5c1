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
from posttrain.feedback.verifiers import CUT_OFF
from posttrain.models.heads import SOLE_ASPECT
from posttrain.models.precision import Precision, pick_device, pick_dtype
from posttrain.models.spec import SpecField
from posttrain.records import Prompt, Response, prompt_key

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.models.template import ChatTemplate


class RewardModel(Config):
    """Scores of a reward model, in its own units; `parts` has every head's by its aspect.

    model: a folder, hub id or `@step`, or a mapping (ModelSpec). aspect: whose head gives the score; may be
    left out where there is one head, or one named "overall". micro_tokens: tokens of one forward (memory, not
    result).
    """

    model: SpecField
    aspect: str | None = None
    precision: Precision = "auto"
    micro_tokens: Annotated[int, Runtime(), Field(gt=0)] = 4096
    device: Annotated[str, Runtime()] = "auto"

    @property
    def label(self) -> str:
        return f"reward_model {model_name(self.model)}"

    def open(self) -> RewardModelJudge:
        """Raises ConfigError for a model that cannot be found, has no reward head, or none of this aspect."""
        from posttrain.models.load import load_model

        device = pick_device(self.device)
        model = load_model(self.model, dtype=pick_dtype(self.precision, device), device=device)
        return RewardModelJudge(model, self.aspect, self.micro_tokens)


@final
class RewardModelJudge:
    """Scores through the forest, so that the responses to one prompt share its computation.

    Raises ConfigError for a model without a reward head, or without one of this aspect.
    """

    def __init__(self, model: Model, aspect: str | None, micro_tokens: int) -> None:
        self.model = model
        self.micro_tokens = micro_tokens
        if model.reward_head is None:
            raise ConfigError(
                f"{model.source} has no reward head, so it cannot judge; train one with the method 'reward'"
            )
        self.aspect = _aspect(aspect, model.aspects, model.source)
        self._longest = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """See `Judge`; a response that was cut off, or is longer than the model takes, gets no answer."""
        from posttrain.models.forest import Branch, tree_of
        from posttrain.models.forward import SCORES, score_trees

        template = self.model.template
        verdicts: list[Verdict] = [CUT_OFF] * len(items)
        whole = [i for i, (_, response) in enumerate(items) if response.finish != "length"]
        rows = [(items[i][0], readable(items[i][1], template)) for i in whole]
        groups: dict[str, list[tuple[int, Branch]]] = {}
        for i, encoded in zip(whole, template.conversations(rows), strict=True):
            length = len(encoded.tokens)
            if self._longest and length > self._longest:
                verdicts[i] = Verdict(
                    None, f"longer than the judge takes: {length} of {self._longest} tokens"
                )
                continue
            branch = Branch(encoded.tokens, encoded.mask)
            groups.setdefault(prompt_key(items[i][0]), []).append((i, branch))
        members = list(groups.values())
        trees = [tree_of([branch for _, branch in group]) for group in members]
        needs = frozenset({SCORES})
        for g, _, out in score_trees(self.model, trees, needs, budget=self.micro_tokens, label="judge"):
            assert out.scores is not None
            for (i, _), scores in zip(members[g], out.scores.tolist(), strict=True):
                verdicts[i] = self._verdict(scores)
        return verdicts

    def _verdict(self, scores: list[float]) -> Verdict:
        parts = {
            aspect: score if math.isfinite(score) else None
            for aspect, score in zip(self.model.aspects, scores, strict=True)
        }
        return Verdict(
            parts[self.aspect], "" if parts[self.aspect] is not None else "not a finite number", parts
        )


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
        raise ConfigError(
            f"{source} has no head for the aspect '{wanted}'; set aspect to one of {', '.join(aspects)}"
        )
    return wanted
