"""What a context opens for its tasks: models, their answers, what they make of given ones. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.token_writer import respond
from posttrain.models.forest import Branch, Forest, tree_of
from posttrain.models.forward import LOGPS, SCORES, Output, score_trees
from posttrain.models.load import Model, load_model
from posttrain.models.precision import Precision, pick_device, pick_dtype
from posttrain.records import Prompt, Response, prompt_key

Group = tuple[Branch, ...]  # sequences that share a prompt, such as the two sides of a pair


def open_model(path: str, precision: Precision, device: str) -> Model:
    """A model ready to be asked."""
    where = pick_device(device)
    return load_model(path, dtype=pick_dtype(precision, where), device=where)


def respond_once(
    model: Model,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    opened: dict[Any, Any],
    label: str,
) -> list[tuple[Response, ...]]:
    """Answers to the prompts; the same prompts asked again, in the same order, are taken from `opened`.

    The whole list is the key because a sample depends on its prompt's place in the list: were single prompts
    shared, the answers of a task would depend on which tasks ran before it.
    """
    key = ("answers", tuple(prompt_key(prompt) for prompt in prompts), params)
    if key not in opened:
        engine = opened.setdefault("engine", LocalEngine(model))
        opened[key] = respond(engine, model.template, prompts, params, label)
    answers: list[tuple[Response, ...]] = opened[key]
    return answers


def with_room(model: Model, prompts: Sequence[Prompt]) -> list[bool]:
    """Which prompts leave the model room to answer."""
    limit = longest(model)
    ids = model.template.prompts([prompt.messages for prompt in prompts])
    return [limit is None or len(tokens) < limit for tokens in ids]


@dataclass(frozen=True)
class PathScore:
    """What a model makes of one given sequence.

    logp: sum of the natural-log probabilities of its supervised tokens; tokens: how many those are.
    """

    logp: float
    tokens: int


def score_groups(model: Model, groups: Sequence[Group], label: str) -> list[list[PathScore] | None]:
    """The log-probs of each group's sequences; those of one group share their prompt's computation.

    None for a group with a sequence longer than the model takes: nothing is cut to fit.
    """
    found: list[list[PathScore] | None] = [None] * len(groups)
    for i, forest, out in _scored(model, groups, LOGPS, label):
        assert out.logps is not None
        sums, lengths = forest.branch_sum(out.logps.double()), forest.lengths
        found[i] = [PathScore(s, int(n)) for s, n in zip(sums.tolist(), lengths.tolist(), strict=True)]
    return found


def reward_groups(model: Model, groups: Sequence[Group], label: str) -> list[list[list[float]] | None]:
    """The scores of each sequence, one a reward head, like `score_groups`."""
    found: list[list[list[float]] | None] = [None] * len(groups)
    for i, _, out in _scored(model, groups, SCORES, label):
        assert out.scores is not None
        found[i] = out.scores.tolist()
    return found


def _scored(
    model: Model, groups: Sequence[Group], need: str, label: str
) -> Iterator[tuple[int, Forest, Output]]:
    limit = longest(model)
    fitting = [
        i for i, group in enumerate(groups) if limit is None or max(len(b.tokens) for b in group) <= limit
    ]
    trees = [tree_of(groups[i]) for i in fitting]
    for i, forest, out in score_trees(model, trees, frozenset({need}), label=label):
        yield fitting[i], forest, out


def longest(model: Model) -> int | None:
    """Tokens the model takes, None where it knows no end."""
    end = getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
    return int(end) if end else None


def too_long(model: Model) -> str:
    """What is noted of a sequence that was left out for its length."""
    return f"longer than the {longest(model)} tokens the model takes"
