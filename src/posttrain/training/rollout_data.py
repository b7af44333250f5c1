"""From scored answers to what the loop learns from: streams for policy gradients, rows for the others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.feedback.judge import Verdict
from posttrain.feedback.pairing import Candidate, by_score
from posttrain.models.forest import Branch, tree_of
from posttrain.models.forward import LOGPS, VALUES, score_trees
from posttrain.records import Comparison, Provenance, Rating, Row, row_id
from posttrain.training.advantages import Rollout
from posttrain.training.methods.base import OLD, REFERENCE, SAMPLER, Example, Method
from posttrain.training.methods.policy import PolicyConfig
from posttrain.training.offline import Encoded
from posttrain.training.source import Data

if TYPE_CHECKING:
    from posttrain.models.load import Model
    from posttrain.training.online_config import OnlineConfig
    from posttrain.training.rollout import Group, Scored


def along_tokens(model: Model, examples: Sequence[Example], needs: frozenset[str], **how: object) -> list:
    """Streams of each example under a model, without gradient: one dict of name -> [M_i] an example."""
    trees = [tree_of(example.branches) for example in examples]
    found: list[dict[str, Tensor]] = [{} for _ in examples]
    for i, forest, out in score_trees(model, trees, needs, **how):  # type: ignore[arg-type]
        for name in needs:
            found[i][name] = getattr(out, name)[forest.token_of]
    return found


def policy_data(
    method: Method,
    cfg: PolicyConfig,
    groups: Sequence[Group],
    policy: Model,
    reference: Model | None,
    *,
    temperature: float,
    kl: float,
    learns: bool,
    several: bool,
    budget: int,
) -> tuple[Data, dict[str, float]]:
    """A rollout's examples, one a prompt, with all that a policy gradient needs; and what to log of it.

    kl: weight of the KL in force. learns: whether the policy learns, or its critic alone. several: whether
    more than one update is made, so that the policy of the rollout must be remembered.
    """
    columns = {"policy": float(learns), "kl": kl}
    examples = [_example(group, columns) for group in groups]
    answers = [answer for group in groups for answer in group.answers]
    sampler = torch.cat([torch.tensor(answer.response.logps) for answer in answers])
    counts = [sum(len(a.response.token_ids or ()) for a in group.answers) for group in groups]
    needs = frozenset({LOGPS} | (method.needs & {VALUES}))
    how = {"budget": budget, "temperature": temperature, "label": "score"}
    known: dict[str, Tensor] = {}
    if several or VALUES in needs or cfg.kl_in == "reward":
        streams = along_tokens(policy, examples, needs, **how)
        known = {name: torch.cat([each[name] for each in streams]) for name in needs}
    if reference is not None:
        told = along_tokens(reference, examples, frozenset({LOGPS}), **how)
        known[REFERENCE] = torch.cat([each[LOGPS] for each in told])
    rollout = Rollout(
        rewards=torch.tensor([answer.reward for answer in answers], dtype=torch.float64),
        groups=torch.repeat_interleave(
            torch.arange(len(groups)), torch.tensor([len(group.answers) for group in groups])
        ),
        lengths=torch.tensor([len(answer.response.token_ids or ()) for answer in answers]),
        logps=known.get(LOGPS, sampler),
        reference=known.get(REFERENCE),
        values=known.get(VALUES),
        kl=kl,
    )
    assert method.advantages is not None
    along = {SAMPLER: sampler, **method.advantages(cfg, rollout)}
    if several:
        along[OLD] = rollout.logps
    if rollout.reference is not None and cfg.kl_in == "loss":
        along[REFERENCE] = rollout.reference
    data = Data(examples, along={k: v.split(counts) for k, v in along.items()}, temperature=temperature)
    return data, _policy_metrics(rollout, sampler, along)


def _example(group: Group, columns: dict[str, float]) -> Example:
    prompt = list(group.asked.ids)
    branches = tuple(
        Branch(prompt + list(answer.response.token_ids or ()), _mask(prompt, answer))
        for answer in group.answers
    )
    return Example(group.asked.prompt.provenance.id, branches, columns)


def _mask(prompt: Sequence[int], answer: Scored) -> list[bool]:
    return [False] * len(prompt) + [True] * len(answer.response.token_ids or ())


def _policy_metrics(rollout: Rollout, sampler: Tensor, along: dict[str, Tensor]) -> dict[str, float]:
    """entropy: -log π of what was drawn, nats a token, an unbiased estimate. explained_variance: of the
    returns by the critic.
    """
    found = {"entropy": -sampler.mean().item(), "kl_weight": rollout.kl}
    if rollout.logps is not sampler:  # else the loss knows the mismatch, token by token
        apart = rollout.logps - sampler
        found |= {
            "sampler_mismatch": apart.abs().mean().item(),
            "sampler_ratio_max": apart.exp().max().item(),
        }
    if rollout.reference is not None:
        found |= _kl_metrics(rollout.logps, rollout.reference, rollout.lengths)
    if "returns" in along:
        returns, values = along["returns"], along["old_values"]
        spread = returns.var().item() if len(returns) > 1 else 0.0
        if spread > 0:
            found["explained_variance"] = 1 - (returns - values).var().item() / spread
        found["returns"] = returns.mean().item()
    return found


def drawn_metrics(
    groups: Sequence[Group], reference: Model | None, temperature: float, budget: int
) -> dict[str, float]:
    """entropy and, where there is a reference, kl and kl_k3, as for a policy gradient; of the sampler's own
    log-probs, for nothing else is known of the answers.
    """
    found = [group for group in groups if group.answers]
    answers = [answer for group in found for answer in group.answers]
    drawn = torch.cat([torch.tensor(answer.response.logps) for answer in answers])
    metrics = {"entropy": -drawn.mean().item()}
    if reference is None:
        return metrics
    how = {"budget": budget, "temperature": temperature, "label": "score"}
    examples = [_example(group, {}) for group in found]
    told = along_tokens(reference, examples, frozenset({LOGPS}), **how)
    lengths = torch.tensor([len(answer.response.token_ids or ()) for answer in answers])
    return metrics | _kl_metrics(drawn, torch.cat([each[LOGPS] for each in told]), lengths)


def _kl_metrics(logps: Tensor, reference: Tensor, lengths: Tensor) -> dict[str, float]:
    """kl: log π - log π_ref summed over an answer (k1), nats an answer; kl_k3: the same by Schulman's k3.

    logps, reference: [M]; lengths: [B].
    """
    back = (reference - logps).split(lengths.tolist())
    return {
        "kl": -torch.stack([each.sum() for each in back]).mean().item(),
        "kl_k3": torch.stack([(each.exp() - 1 - each).sum() for each in back]).mean().item(),
    }


def rows_of(
    method: Method, cfg: OnlineConfig, groups: Sequence[Group], seed: int, judge: str, counts: Counter[str]
) -> list[Row]:
    """Token-exact rows for an objective that learns from comparisons or from labels."""
    make = _comparisons if method.kinds[0] is Comparison else _labelled
    return [row for group in groups for row in make(cfg, group, seed, judge, counts)]


def _comparisons(cfg: OnlineConfig, group: Group, seed: int, judge: str, counts: Counter[str]) -> list[Row]:
    distinct = list({answer.response.token_ids: answer for answer in group.answers}.values())
    counts["identical"] += len(group.answers) - len(distinct)
    candidates = [Candidate(answer.response, "") for answer in distinct]
    verdicts = [Verdict(answer.reward) for answer in distinct]
    rng = random.Random(row_id(seed, group.asked.prompt.provenance.id))
    found = by_score(candidates, verdicts, cfg.pairs, cfg.min_gap, rng, counts)
    counts["unpaired"] += not found
    return [
        Comparison(
            provenance=_provenance(group, seed, judge, i),
            prompt=group.asked.prompt,
            chosen=pair.chosen.response,
            rejected=pair.rejected.response,
            strength=pair.strength,
            judge=judge,
            prompt_token_ids=group.asked.ids,
        )
        for i, pair in enumerate(found)
    ]


def _labelled(cfg: OnlineConfig, group: Group, seed: int, judge: str, counts: Counter[str]) -> list[Row]:
    """An answer is good from `good_above` on; else above its prompt's mean; one at the mean is neither."""
    rewards = [answer.reward for answer in group.answers]
    rows: list[Row] = []
    for i, answer in enumerate(group.answers):
        if cfg.good_above is None:
            mean = sum(rewards) / len(rewards)
            if abs(answer.reward - mean) < 1e-9:
                counts["ties"] += 1
                continue
            good = answer.reward > mean
        else:
            good = answer.reward >= cfg.good_above
        rows.append(
            Rating(
                provenance=_provenance(group, seed, judge, i),
                prompt=group.asked.prompt,
                response=answer.response,
                scores={"overall": answer.reward},
                label=good,
                judge=judge,
            )
        )
    return rows


def _provenance(group: Group, seed: int, judge: str, number: int) -> Provenance:
    origin = group.asked.prompt.provenance
    return Provenance(
        id=row_id(origin.id, seed, number),
        source=origin.source,
        licence=origin.licence,
        makers=origin.makers | {"response": "the policy in training", "rating": judge},
        parents=(origin.id,),
    )


def reference_stream(
    reference: Model, encoded: Encoded, budget: int, temperature: float
) -> list[torch.Tensor]:
    """Log-probs under the reference of each example's wanted tokens, [N_i] each."""
    trees = [tree_of(example.branches) for example in encoded.examples]
    scored = score_trees(reference, trees, frozenset({LOGPS}), budget=budget, temperature=temperature)
    found = {i: out.logps for i, _, out in scored}
    return [found[i] for i in range(len(trees))]  # type: ignore[misc]
