"""What the pairwise objectives share: a comparison as two branches, and its numbers as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Rating, Response, prompt_key
from posttrain.training.methods.base import Example

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.models.forest import Branch
    from posttrain.models.template import ChatTemplate


@dataclass(frozen=True)
class Said:
    """Token ids of a prompt and of one answer to it."""

    prompt: Sequence[int]
    response: Sequence[int]


def said(rows: Sequence[Comparison | Rating], template: ChatTemplate) -> list[tuple[Said, ...] | RowError]:
    """The answers of each row: chosen and rejected, or the one that is rated. Token-exact comparisons go as
    they are; text is tokenised here once.
    """
    written = [row for row in rows if isinstance(row, Rating) or row.prompt_token_ids is None]
    prompts = iter(template.prompts([row.prompt.messages for row in written]))
    responses = iter(template.responses([(row.prompt.messages, r) for row in written for r in answers(row)]))
    found: list[tuple[Said, ...] | RowError] = []
    for row in rows:
        if isinstance(row, Rating) or row.prompt_token_ids is None:
            prompt = next(prompts)
            found.append(tuple(Said(prompt, next(responses)) for _ in answers(row)))
        elif row.chosen.token_ids is None or row.rejected.token_ids is None:
            found.append(RowError("chosen", "prompt_token_ids without token_ids of both responses"))
        else:
            ids = (row.chosen.token_ids, row.rejected.token_ids)
            found.append(tuple(Said(row.prompt_token_ids, each) for each in ids))
        made = found[-1]
        if (
            not isinstance(made, RowError)
            and len(made) == 2
            and list(made[0].response) == list(made[1].response)
        ):
            found[-1] = RowError("rejected", "chosen and rejected are the same tokens")
    return found


def answers(row: Comparison | Rating) -> tuple[Response, ...]:
    """The responses of a row, the chosen one first."""
    return (row.response,) if isinstance(row, Rating) else (row.chosen, row.rejected)


def branch_of(one: Said) -> Branch:
    """A prompt with its answer, of which the answer is wanted."""
    from posttrain.models.forest import Branch

    tokens = [*one.prompt, *one.response]
    return Branch(tokens, [False] * len(one.prompt) + [True] * len(one.response))


def encode_pairs(
    rows: Sequence[Comparison], template: ChatTemplate, first: int | None = None
) -> list[Example | RowError]:
    """Chosen and rejected after their one prompt.

    first: only so many tokens of each response; None is all. What comes after them cannot change their
    log-probs, so it is left out and not computed. columns: strength, probability (NaN where the judge gave
    none).
    """
    found: list[Example | RowError] = []
    for row, made in zip(rows, said(rows, template), strict=True):
        begun = made if isinstance(made, RowError) or first is None else _beginnings(made, first)
        if isinstance(begun, RowError):
            found.append(begun)
        else:
            branches = tuple(map(branch_of, begun))
            found.append(Example(row.provenance.id, branches, pair_columns(row), family=family_of(row)))
    return found


def _beginnings(pair: tuple[Said, ...], first: int) -> tuple[Said, ...] | RowError:
    """The pair cut to its responses' first tokens; an error where those are the same."""
    cut = tuple(Said(each.prompt, each.response[:first]) for each in pair)
    if list(cut[0].response) == list(cut[1].response):
        return RowError("rejected", f"the first {first} tokens (first_tokens) are those of chosen")
    return cut


def family_of(row: Comparison) -> str:
    """Pairs that share a tree: token-exact ones of one prompt, such as those along one answer."""
    return "" if row.prompt_token_ids is None else prompt_key(row.prompt)


def pair_columns(row: Comparison) -> dict[str, float]:
    """What a judge said of a pair, in numbers."""
    return {
        "strength": math.nan if row.strength is None else row.strength,
        "probability": math.nan if row.probability is None else row.probability,
    }


def split_pairs(per_branch: Tensor) -> tuple[Tensor, Tensor]:
    """[2n, ...] in the order chosen, rejected, chosen, … -> two of [n, ...]."""
    return per_branch[0::2], per_branch[1::2]


def label_of(probability: Tensor, soft: bool, smoothing: float) -> Tensor:
    """The probability that chosen is better, [n]: the judge's own where it is wanted and given, else 1 -
    smoothing.
    """
    hard = probability.new_full(probability.shape, 1.0 - smoothing)
    return hard.where(probability.isnan(), probability) if soft else hard
