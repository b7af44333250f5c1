"""How far a policy has gone from its reference: KL(policy || reference), by answers drawn from the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from posttrain.common.config import DataRef, ModelRef
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation.items import group_of, read_items
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.records import Prompt, Response, prompt_key

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.load import Model

Spent = tuple[float, float]  # by the estimators k1 and k3, nats


class KL(TaskConfig):
    """`kl`: log π(y|x) - log π_ref(y|x) summed over the tokens of an answer y that π itself drew at
    temperature 1, in nats an answer; its mean over answers is KL(π || π_ref) without bias. `kl_k3`: the same
    by Schulman's k3 = e^-u - 1 + u summed over the tokens, u = log π - log π_ref, which has the same mean and
    is never negative. `tokens`: how long the answers are; `finished`: which ended by themselves. An answer
    counts as far as it was drawn: what is measured is the KL of answers of at most max_new_tokens tokens.

    data: prompts, or rows that hold them. reference: the model from which the distance is; of the same
    vocabulary. n: answers a prompt. group_by: a tag of the prompt; results are also given for each of its
    values.
    """

    title: ClassVar[str] = "KL to the reference"
    headline: ClassVar[str] = "kl"
    units: ClassVar[dict[str, str]] = {"kl": "nats", "kl_k3": "nats", "tokens": "tokens"}
    undirected: ClassVar[frozenset[str]] = frozenset({"kl", "kl_k3", "tokens", "finished"})

    data: DataRef
    reference: ModelRef
    n: int = Field(4, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    seed: int = Field(0, ge=0, lt=2**62)
    group_by: str = ""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        """One outcome an answer; those to one prompt share a cluster. A prompt given twice is asked once.

        Raises ConfigError where policy and reference do not share a vocabulary.
        """
        from posttrain.evaluation.open import with_room
        from posttrain.models.vocabulary import same_vocabulary

        policy, reference = ctx.model(), ctx.model_at(self.reference)
        same_vocabulary(policy, reference, "kl: reference")
        distinct = {prompt_key(prompt): prompt for prompt in read_items(self.data, Prompt)}
        prompts = ctx.take(list(distinct.values()))
        room = with_room(policy, prompts)
        asked = [prompt for prompt, fits in zip(prompts, room, strict=True) if fits]
        params = SamplingParams(n=self.n, max_new_tokens=self.max_new_tokens, seed=self.seed)
        answers = ctx.respond(asked, params)
        spent = iter(_spent(policy, reference, asked, answers, ctx.label))
        said = iter(answers)
        return [
            self._outcome(prompt, i, response, found)
            for prompt, fits in zip(prompts, room, strict=True)
            for i, (response, found) in enumerate(
                zip(next(said), next(spent), strict=True)
                if fits
                else [(None, "no room for an answer")] * self.n
            )
        ]

    def _outcome(self, prompt: Prompt, i: int, answer: Response | None, found: Spent | str) -> Outcome:
        key = prompt_key(prompt)
        k1, k3 = (None, None) if isinstance(found, str) else found
        return Outcome(
            item=f"{key}/{i}",
            cluster=key,
            metrics={
                "kl": k1,
                "kl_k3": k3,
                "tokens": None if answer is None else float(len(answer.token_ids or ())),
                "finished": None if answer is None else float(answer.finish != "length"),
            },
            group=group_of(prompt, self.group_by),
            prompt=prompt.text,
            response="" if answer is None else answer.text,
            note=found if isinstance(found, str) else "",
        )


def _spent(
    policy: Model,
    reference: Model,
    prompts: list[Prompt],
    answers: list[tuple[Response, ...]],
    label: str,
) -> list[list[Spent | str]]:
    """What each answer spent, or why it cannot be said."""
    from posttrain.evaluation.open import longest, too_long
    from posttrain.models.forest import Branch
    from posttrain.training.methods.base import LOGPS, Example
    from posttrain.training.rollout_data import along_tokens

    limit = longest(reference)
    found: list[list[Spent | str]] = [[too_long(reference)] * len(row) for row in answers]
    asked = policy.template.prompts([prompt.messages for prompt in prompts])
    places: list[list[tuple[int, int]]] = []  # of each example's branches
    examples = []
    for i, (ids, row) in enumerate(zip(asked, answers, strict=True)):
        said = [list(response.token_ids or ()) for response in row]
        fitting = [j for j, ids_j in enumerate(said) if limit is None or len(ids) + len(ids_j) <= limit]
        if fitting:
            masks = [[False] * len(ids) + [True] * len(said[j]) for j in fitting]
            branches = [Branch([*ids, *said[j]], mask) for j, mask in zip(fitting, masks, strict=True)]
            examples.append(Example(str(i), tuple(branches)))
            places.append([(i, j) for j in fitting])
    sides = [along_tokens(model, examples, frozenset({LOGPS}), label=label) for model in (policy, reference)]
    for example, where, mine, other in zip(examples, places, *sides, strict=True):
        lengths = [sum(branch.mask) for branch in example.branches]
        for (i, j), *pair in zip(where, mine[LOGPS].split(lengths), other[LOGPS].split(lengths), strict=True):
            found[i][j] = estimates(*pair)
    return found


def estimates(logps: Tensor, reference: Tensor) -> Spent:
    """Σ k1 and Σ k3 over the tokens of one answer. logps, reference: [M] each."""
    u = logps.double() - reference.double()
    return u.sum().item(), ((-u).exp() - 1 + u).sum().item()
