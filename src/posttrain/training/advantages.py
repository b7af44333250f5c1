"""From rewards to advantages: what each sampled token is to blame or to thank for. Pure functions.

B answers hold M tokens in all, laid end to end: answer 0's tokens, answer 1's, …
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Rollout:
    """Answers just sampled, all of them scored.

    rewards: [B] float64, for what counts are their differences. groups: [B] int64, which prompt. lengths: [B]
    int64, tokens of each. logps, reference: [M] log-probs under the policy before any update and under the
    reference, at the sampling temperature. values: [M], the critic's estimate at the token before each. kl:
    weight of the KL in force.
    """

    rewards: Tensor
    groups: Tensor
    lengths: Tensor
    logps: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    kl: float = 0.0

    @property
    def branch_of(self) -> Tensor:
        """[M] which answer each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    def per_answer(self, per_token: Tensor) -> Tensor:
        """Sum over the tokens of each answer: [M] -> [B]."""
        zeros = per_token.new_zeros(len(self.lengths))
        return zeros.index_add(0, self.branch_of, per_token)

    def per_token(self, per_answer: Tensor) -> Tensor:
        """The answer's number at each of its tokens: [B] -> [M]."""
        return per_answer[self.branch_of]


def kl_penalised(rollout: Rollout) -> Tensor:
    """Reward less the KL estimate k1 of the whole answer: R - kl · Σ_t (log π - log π_ref), [B]."""
    if rollout.reference is None or not rollout.kl:
        return rollout.rewards
    return rollout.rewards - rollout.kl * rollout.per_answer(rollout.logps - rollout.reference)


def token_rewards(rollout: Rollout, kl_in_reward: bool) -> Tensor:
    """-kl · (log π - log π_ref) at each token, and the answer's reward at its last: [M].

    InstructGPT (arXiv 2203.02155), equation 2; Ziegler et al. (arXiv 1909.08593), equation 2.
    """
    rewards = torch.zeros_like(rollout.logps)
    if kl_in_reward and rollout.reference is not None:
        rewards = -rollout.kl * (rollout.logps - rollout.reference)
    last = rollout.lengths.cumsum(0) - 1
    return rewards.index_add(0, last, rollout.rewards.to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438), equation 16, and returns = advantages + values.

    rewards, values: [M]; values[t] is the estimate before token t is said. After the last token the value
    is 0. Returns two of [M].
    """
    sizes = lengths.tolist()
    padded_rewards = pad_sequence(list(rewards.split(sizes)), batch_first=True)  # [B, L]
    padded_values = pad_sequence(list(values.split(sizes)), batch_first=True)
    steps = padded_rewards.shape[1]
    advantages = torch.zeros_like(padded_rewards)
    running = advantages.new_zeros(len(sizes))
    for t in reversed(range(steps)):
        after = padded_values[:, t + 1] if t + 1 < steps else torch.zeros_like(running)
        delta = padded_rewards[:, t] + gamma * after - padded_values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
    mask = torch.arange(steps)[None] < lengths[:, None]
    flat = advantages[mask]
    return flat, flat + values


def whitened(x: Tensor) -> Tensor:
    """(x - mean) / std over all of x; where x does not vary, 0."""
    if len(x) < 2:
        return torch.zeros_like(x)
    x = x - x[0]  # what is alike becomes exactly 0, not the rounding error of a mean
    return (x - x.mean()) / (x.std() + 1e-8)


def over_others(rewards: Tensor, groups: Tensor) -> Tensor:
    """Each reward less the mean of the others of its group, [B]: RLOO (arXiv 2402.14740), equation 8.

    Every group has at least two members.
    """
    rewards = _from_first(rewards, groups)
    total, count = _sums(rewards, groups)
    return (rewards - (total - rewards) / (count - 1)).float()


def over_mean(rewards: Tensor, groups: Tensor, divide_by_std: bool) -> Tensor:
    """Each reward less its group's mean, over the group's standard deviation where asked: [B].

    GRPO (arXiv 2402.03300), section 4.1.2; without the deviation, Dr. GRPO (arXiv 2503.20783), section 3.2.
    A group that does not vary has advantage 0.
    """
    rewards = _from_first(rewards, groups)
    total, count = _sums(rewards, groups)
    centred = rewards - total / count
    if not divide_by_std:
        return centred.float()
    squares, _ = _sums(centred**2, groups)
    return (centred / ((squares / (count - 1)).sqrt() + 1e-4)).float()


def _from_first(x: Tensor, groups: Tensor) -> Tensor:
    """Each less the first of its group: where a group does not vary, exactly 0, and not the rounding error of
    a mean, which a division by next to no deviation would blow up. [B].
    """
    first = torch.full((int(groups.max()) + 1 if len(groups) else 0,), len(x), dtype=torch.int64)
    first = first.scatter_reduce(0, groups, torch.arange(len(x)), "amin")
    return x - x[first[groups]]


def _sums(x: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and size of the group of each member: two of [B]."""
    size = int(groups.max()) + 1 if len(groups) else 0
    total = x.new_zeros(size).index_add(0, groups, x)
    count = x.new_zeros(size).index_add(0, groups, torch.ones_like(x))
    return total[groups], count[groups]
