"""The one forward of every method: a forest in, float32 log-probs, values and scores out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.common.errors import ConfigError
from posttrain.common.progress import progress
from posttrain.models.attention import unmasked
from posttrain.models.forest import Forest, Tree, pack, paths_of, plant
from posttrain.models.layout import STEP
from posttrain.models.logprobs import from_logits, token_logps
from posttrain.models.lora import using
from posttrain.models.rope import common_length

if TYPE_CHECKING:
    from posttrain.models.load import Model

LOGPS, ENTROPY, VALUES, SCORES = "logps", "entropy", "values", "scores"


@dataclass(frozen=True)
class Output:
    """What a forward was asked for, all float32; None for what was not.

    logps, entropy, values: [N], one a wanted token (values at the token that predicts it). scores: [B, k]
    at branch ends.
    """

    logps: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None


def forward(
    model: Model, forest: Forest, needs: frozenset[str] = frozenset({LOGPS}), temperature: float = 1.0
) -> Output:
    """Run a forest through the model. Where the architecture cannot take this one, one row a branch (same
    result). temperature: logits are divided by it. A model with a critic leaves the values to it.
    """
    if VALUES in needs and model.critic is not None:
        values = forward(model.critic, forest, frozenset({VALUES})).values
        others = needs - {VALUES}
        out = forward(model, forest, others, temperature) if others else Output()
        return replace(out, values=values)
    if not model.lm_head and (LOGPS in needs or ENTROPY in needs):
        raise ConfigError(f"{model.source} is a reward model saved without an LM head: it has no log-probs")
    run = by_forest if model.forest and _may_share(model, forest) else by_rows
    with using(model.hf, model.adapters):
        return run(model, forest, needs, temperature)


def _may_share(model: Model, forest: Forest) -> bool:
    longest = common_length(causal_lm(model.hf).config)
    return longest is None or int(forest.positions.max()) < longest


def by_forest(model: Model, forest: Forest, needs: frozenset[str], temperature: float = 1.0) -> Output:
    """All branches at once, shared tokens once."""
    with unmasked():
        hidden = trunk(model.hf)(
            input_ids=forest.tokens[None],
            position_ids=forest.positions[None],
            use_cache=False,
            forest=forest.layout,
        ).last_hidden_state[0]
    logps = entropy = None
    if LOGPS in needs or ENTROPY in needs:
        logps, entropy = _token_logps(model, hidden, forest, ENTROPY in needs, temperature)
    return Output(
        logps,
        entropy,
        _apply_head(model.value_head, hidden[forest.sources]).squeeze(-1) if VALUES in needs else None,
        _apply_head(model.reward_head, hidden[forest.tails]) if SCORES in needs else None,
    )


def _token_logps(
    model: Model, hidden: Tensor, forest: Forest, entropies: bool, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropies of the wanted tokens from all hidden states [T, H]; their number is rounded
    up.
    """
    count = len(forest.targets)
    extra = (0, -count % STEP)
    logps, entropy = token_logps(
        hidden[nn.functional.pad(forest.sources, extra)],
        causal_lm(model.hf).get_output_embeddings(),
        nn.functional.pad(forest.targets, extra),
        entropies=entropies,
        softcap=getattr(causal_lm(model.hf).config.get_text_config(), "final_logit_softcapping", None),
        temperature=temperature,
    )
    return logps[:count], None if entropy is None else entropy[:count]


def _apply_head(head: nn.Linear | None, hidden: Tensor) -> Tensor:
    """A scalar head in float32: [n, H] -> [n, k]."""
    if head is None:
        raise ValueError("this model has no such head")
    return nn.functional.linear(hidden.float(), head.weight.float())


def causal_lm(hf: Any) -> Any:
    """The Hugging Face causal LM inside a LoRA wrapper, or itself."""
    return hf.get_base_model() if hasattr(hf, "get_base_model") else hf


def trunk(hf: Any) -> Any:
    """The decoder without its LM head; LoRA layers stay in place."""
    return causal_lm(hf).base_model


def by_rows(model: Model, forest: Forest, needs: frozenset[str], temperature: float = 1.0) -> Output:
    """The dense fallback: each branch a row of its own through the model's own forward."""
    logps: dict[int, Tensor] = {}
    entropy: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    scores = []
    ids = forest.token_of.split(torch.bincount(forest.branch_of, minlength=forest.branches).tolist())
    for path, wanted in zip(paths_of(forest), ids, strict=True):
        row = forest.tokens[path][None]
        fresh = [n for n in wanted.tolist() if n not in logps]
        if fresh and (LOGPS in needs or ENTROPY in needs):
            at = torch.searchsorted(path, forest.sources[fresh])
            logits = causal_lm(model.hf)(input_ids=row, use_cache=False).logits[0, at].float()
            row_logps, row_entropy = from_logits(logits / temperature, forest.targets[fresh])
            logps.update(zip(fresh, row_logps, strict=True))
            entropy.update(zip(fresh, row_entropy, strict=True))
        if VALUES in needs or SCORES in needs:
            hidden = trunk(model.hf)(input_ids=row, use_cache=False).last_hidden_state[0]
            if SCORES in needs:
                scores.append(_apply_head(model.reward_head, hidden[-1]))
            if VALUES in needs and fresh:
                at = torch.searchsorted(path, forest.sources[fresh])
                values.update(zip(fresh, _apply_head(model.value_head, hidden[at]).squeeze(-1), strict=True))
    count = len(forest.targets)
    return Output(
        _in_order(logps, count) if LOGPS in needs else None,
        _in_order(entropy, count) if ENTROPY in needs else None,
        _in_order(values, count) if VALUES in needs else None,
        torch.stack(scores) if SCORES in needs else None,
    )


def _in_order(by_index: dict[int, Tensor], count: int) -> Tensor:
    return torch.stack([by_index[n] for n in range(count)]) if count else torch.zeros(0)


def score_trees(
    model: Model,
    trees: Sequence[Tree],
    needs: frozenset[str] = frozenset({LOGPS}),
    *,
    budget: int = 4096,
    label: str = "",
    temperature: float = 1.0,
) -> Iterator[tuple[int, Forest, Output]]:
    """Forward many trees without gradient, longest first; yields (index of the tree, its forest, its
    output on the CPU).

    budget: tokens of one forward. Every tree comes out once, in an order of the function's choosing.
    """
    order = sorted(range(len(trees)), key=lambda i: -trees[i].size)
    device = next(model.hf.parameters()).device
    with torch.no_grad(), progress(label or "score", len(trees), "rows") as bar:
        for group in pack([trees[i].size for i in order], budget):
            chosen = [order[g] for g in group]
            together = plant([trees[i] for i in chosen])
            out = forward(model, together.to(device), needs, temperature)
            tokens = branches = 0
            for i in chosen:
                alone = plant([trees[i]])
                n, b = len(alone.targets), alone.branches
                yield i, alone, _slice(out, slice(tokens, tokens + n), slice(branches, branches + b))
                tokens, branches = tokens + n, branches + b
            bar.advance(len(chosen))


def _slice(out: Output, tokens: slice, branches: slice) -> Output:
    def cut(x: Tensor | None, part: slice) -> Tensor | None:
        return None if x is None else x[part].cpu()

    return Output(
        cut(out.logps, tokens), cut(out.entropy, tokens), cut(out.values, tokens), cut(out.scores, branches)
    )
