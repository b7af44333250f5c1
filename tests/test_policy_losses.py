"""Advantages and policy-gradient losses against numbers derived by hand, and optima against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import Output
from posttrain.training.advantages import (
    Rollout,
    gae,
    kl_penalised,
    over_mean,
    over_others,
    token_rewards,
    whitened,
)
from posttrain.training.methods import grpo, ppo, rloo
from posttrain.training.methods.base import Batch
from posttrain.training.methods.grpo import GRPO
from posttrain.training.methods.policy import PolicyConfig
from posttrain.training.methods.ppo import PPO
from posttrain.training.methods.rloo import RLOO


def rollout(**fields):
    """Two answers of one prompt: two tokens and one."""
    given = {
        "rewards": torch.tensor([1.0, -0.5]),
        "groups": torch.tensor([0, 0]),
        "lengths": torch.tensor([2, 1]),
        "logps": torch.tensor([-1.0, -2.0, -0.5]),
        "reference": torch.tensor([-1.5, -1.0, -0.5]),
        "kl": 0.1,
    }
    return Rollout(**{**given, **fields})


def test_token_rewards_stand_at_the_last_token_found_by_length():
    # -0.1 * (log pi - log ref): -0.05, 0.1, 0; the answers' rewards at tokens 1 and 2
    assert token_rewards(rollout(), True).tolist() == pytest.approx([-0.05, 1.1, -0.5])
    assert token_rewards(rollout(), False).tolist() == pytest.approx([0.0, 1.0, -0.5])


def test_kl_is_taken_off_the_whole_answer():
    # answer 0: log-ratios 0.5 and -1, sum -0.5; answer 1: 0
    assert kl_penalised(rollout()).tolist() == pytest.approx([1.05, -0.5])


def test_gae_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 0.5, 1.5])
    gained, returns = gae(rewards, values, torch.tensor([3, 1]), gamma=0.9, lam=0.5)
    d2 = 1.0 - 0.5
    d1 = 0.9 * 0.5 - 0.25
    d0 = 0.9 * 0.25 - 0.5
    a1 = d1 + 0.45 * d2
    expected = [d0 + 0.45 * a1, a1, d2, 0.5]
    assert gained.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values.tolist(), strict=True)])


def test_gae_of_one_and_no_discount_is_reward_to_go_less_the_value():
    torch.manual_seed(0)
    rewards, values = torch.randn(7), torch.randn(7)
    gained, returns = gae(rewards, values, torch.tensor([4, 3]), gamma=1.0, lam=1.0)
    to_go = torch.cat([part.flip(0).cumsum(0).flip(0) for part in rewards.split([4, 3])])
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(gained, to_go - values)


def test_ppo_whitens_after_returns_and_over_all_tokens():
    values = torch.tensor([0.2, 0.4, 0.1])
    streams = ppo.advantages(PPO(lam=1.0), rollout(values=values))
    rewards = [-0.05, 1.1, -0.5]
    returns = [rewards[0] + rewards[1], rewards[1], rewards[2]]
    raw = torch.tensor(returns) - values
    assert streams["returns"].tolist() == pytest.approx(returns)
    torch.testing.assert_close(streams["advantages"], (raw - raw.mean()) / (raw.std() + 1e-8))
    assert streams["advantages"].mean().item() == pytest.approx(0, abs=1e-6)
    plain = ppo.advantages(PPO(lam=1.0, whiten=False), rollout(values=values))
    torch.testing.assert_close(plain["advantages"], raw)


def test_baselines_by_hand():
    rewards, groups = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])
    assert over_others(rewards, groups).tolist() == pytest.approx([-3.0, -1.5, 4.5, 0.0, 0.0])
    assert over_mean(rewards, groups, False).tolist() == pytest.approx([-2.0, -1.0, 3.0, 0.0, 0.0])
    std = math.sqrt((4 + 1 + 9) / 2) + 1e-4
    assert over_mean(rewards, groups, True).tolist() == pytest.approx([-2 / std, -1 / std, 3 / std, 0.0, 0.0])


def test_whitening_what_does_not_vary_gives_zeros():
    assert whitened(torch.tensor([2.0])).tolist() == [0.0]
    assert whitened(torch.full((3,), 2.0)).tolist() == [0.0] * 3


# prompt [1, 2]; answers [3, 4] and [3, 5, 6] share token 3: N = 4, M = 5
LOGPS = [-1.0, -2.0, -2.5, -3.5]
ALONG = [0, 1, 0, 2, 3]  # which of the N each of the M is


def batch(**along):
    rows = [
        Branch([1, 2, 3, 4], [False, False, True, True]),
        Branch([1, 2, 3, 5, 6], [False] * 2 + [True] * 3),
    ]
    forest = plant([tree_of(rows)])
    here = [LOGPS[i] for i in ALONG]
    given = {"advantages": [1.0, 1.0, -2.0, -2.0, -2.0], "sampler_logps": here, **along}
    return Batch(
        forest,
        {"policy": torch.ones(1), "kl": torch.tensor([0.1])},
        {},
        {name: torch.tensor(values) for name, values in given.items()},
    )


def value(method, cfg, b, logps=LOGPS, values=None):
    out = Output(logps=torch.tensor(logps), values=None if values is None else torch.tensor(values))
    result = method.loss(cfg, out, b)
    return ((result.items * result.weights).sum() / result.weights.sum()).item()


def test_a_token_that_two_answers_share_is_counted_for_each():
    # ratio 1 everywhere, no KL: -A at each of the five
    assert value(grpo, GRPO(kl=0, normalise="tokens"), batch()) == pytest.approx(-(1 + 1 - 2 - 2 - 2) / 5)
    assert value(grpo, GRPO(kl=0, normalise="responses"), batch()) == pytest.approx(-(1 - 2) / 2)
    assert value(rloo, RLOO(kl=0), batch()) == pytest.approx(-(2 - 6) / 2)


def test_clipping_by_hand():
    # pi/pi_old: 1.5, 0.5 for A = 1; 1.5, 0.5, 1.1 for A = -2, clip 0.2
    old = [
        lp - math.log(r) for lp, r in zip([LOGPS[i] for i in ALONG], [1.5, 0.5, 1.5, 0.5, 1.1], strict=True)
    ]
    cfg = GRPO(kl=0, normalise="tokens", importance_clip=None)
    expected = -(1.2 + 0.5 - 2 * 1.5 - 2 * 0.8 - 2 * 1.1) / 5
    assert value(grpo, cfg, batch(old_logps=old)) == pytest.approx(expected)
    higher = cfg.model_copy(update={"clip_high": 0.4})
    expected = -(1.4 + 0.5 - 2 * 1.5 - 2 * 0.8 - 2 * 1.1) / 5
    assert value(grpo, higher, batch(old_logps=old)) == pytest.approx(expected)
    result = grpo.loss(cfg, Output(logps=torch.tensor(LOGPS)), batch(old_logps=old))
    assert result.metrics["clipped"].tolist() == [1, 0, 0, 1, 0]  # where the gradient is cut off


def test_the_ratio_of_the_whole_answer_by_hand():
    old = [lp - d for lp, d in zip([LOGPS[i] for i in ALONG], [0.1, 0.3, 0.0, -0.3, 0.0], strict=True)]
    cfg = GRPO(kl=0, ratio="sequence", clip=0.5, importance_clip=None)
    # GSPO: exp of the mean log-ratio, 0.2 and -0.1
    expected = -(math.exp(0.2) * 1 + math.exp(-0.1) * -2) / 2
    assert value(grpo, cfg, batch(old_logps=old)) == pytest.approx(expected)


def test_kl_estimates_by_hand():
    reference = [-1.5, -2.0, -1.5, -2.0, -3.0]
    u = [0.5, 0.0, 0.5, -0.5, -0.5]
    k3 = [math.exp(-x) - 1 + x for x in u]
    policy = -(1 + 1 - 2 - 2 - 2) / 5
    cfg = GRPO(kl=0.1, normalise="tokens")
    assert value(grpo, cfg, batch(reference=reference)) == pytest.approx(policy + 0.1 * sum(k3) / 5)
    cfg = GRPO(kl=0.1, normalise="tokens", kl_estimate="k2")
    assert value(grpo, cfg, batch(reference=reference)) == pytest.approx(
        policy + 0.1 * sum(x**2 / 2 for x in u) / 5
    )


def test_importance_is_truncated_by_hand():
    here = [LOGPS[i] for i in ALONG]
    sampler = [here[0] - math.log(3.0), here[1] - math.log(0.5), *here[2:]]  # pi/sampler 3 and 0.5
    cfg = GRPO(kl=0, normalise="tokens", importance_clip=2.0)
    assert value(grpo, cfg, batch(sampler_logps=sampler)) == pytest.approx(-(2.0 + 0.5 - 6) / 5)
    off = cfg.model_copy(update={"importance_clip": None})
    assert value(grpo, off, batch(sampler_logps=sampler)) == pytest.approx(-(2 - 6) / 5)


def test_ppo_value_loss_by_hand():
    b = batch(returns=[1.0, 1.0, 1.0, 0.0, 0.0], old_values=[0.5, 0.5, 0.5, 0.5, 0.5])
    values = [0.9, 0.6, 0.1, 0.5]  # of the N; along the answers 0.9, 0.6, 0.9, 0.1, 0.5
    # clipped to 0.5 ± 0.2: 0.7, 0.6, 0.7, 0.3, 0.5; the worse of the two squares
    squares = [0.3**2, 0.4**2, 0.3**2, 0.3**2, 0.5**2]
    policy = -(1 + 1 - 2 - 2 - 2) / 5
    cfg = PPO(kl=0, value_weight=0.5, value_clip=0.2)
    assert value(ppo, cfg, b, values=values) == pytest.approx(policy + 0.5 * sum(squares) / 2 / 5)
    frozen = Batch(b.forest, {"policy": torch.zeros(1), "kl": torch.tensor([0.0])}, {}, b.along)
    assert value(ppo, cfg, frozen, values=values) == pytest.approx(0.5 * sum(squares) / 2 / 5)


@pytest.mark.parametrize("how", ["tokens", "responses", "sum"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gradients_equal_a_float64_derivation(how, seed):
    """One step's gradient with respect to log-probs, against autograd over the written-out formula."""
    g = torch.Generator().manual_seed(seed)
    logps = -torch.rand(4, generator=g, dtype=torch.float64) * 3
    old, sampler, reference = (
        logps[ALONG] + 0.4 * torch.randn(5, generator=g, dtype=torch.float64) for _ in range(3)
    )
    advantages = torch.randn(5, generator=g, dtype=torch.float64)
    cfg = GRPO(kl=0.3, normalise=how, clip=0.2, clip_high=0.3, importance_clip=1.3)
    ours = logps.clone().requires_grad_()
    b = batch()
    along = {"advantages": advantages, "old_logps": old, "sampler_logps": sampler, "reference": reference}
    b = Batch(b.forest, {"policy": torch.ones(1), "kl": torch.tensor([0.3], dtype=torch.float64)}, {}, along)
    result = grpo.loss(cfg, Output(logps=ours), b)
    ((result.items * result.weights).sum() / result.weights.sum()).backward()

    theirs = logps.clone().requires_grad_()
    answers = []
    for places in ([0, 1], [2, 3, 4]):
        costs = []
        for m in places:
            lp = theirs[ALONG[m]]
            rho = (lp - old[m]).exp()
            best = torch.min(rho * advantages[m], rho.clamp(0.8, 1.3) * advantages[m])
            weight = min(math.exp(old[m] - sampler[m]), 1.3)
            k3 = (reference[m] - lp).exp() - 1 - (reference[m] - lp)
            costs.append(-weight * best + 0.3 * k3)
        answers.append(torch.stack(costs))
    expected = {
        "tokens": torch.cat(answers).mean(),
        "responses": torch.stack([a.mean() for a in answers]).mean(),
        "sum": torch.stack([a.sum() for a in answers]).mean(),
    }[how]
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


REWARDS = torch.tensor([0.0, 0.5, -1.0, 1.5, 0.2])
REFERENCE = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25]).log()


def world(method, cfg: PolicyConfig, seed: int, steps: int = 1500, n: int = 64) -> torch.Tensor:
    """Train a softmax over five one-token answers by the objective itself; returns log-probs averaged over
    the last third.
    """
    g = torch.Generator().manual_seed(seed)
    logits = REFERENCE.clone().requires_grad_()
    critic = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, critic], lr=0.02)
    forest = plant([tree_of([Branch([0, k + 1], [False, True])]) for k in range(n)])
    total = torch.zeros(5)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps) + 1e-4
        logq = logits.log_softmax(0)
        drawn = torch.multinomial(logq.exp().detach(), n, replacement=True, generator=g)
        now = logq[drawn]
        values = critic.expand(n)
        r = Rollout(
            REWARDS[drawn],
            torch.arange(n) // 8,
            torch.ones(n, dtype=torch.long),
            now.detach(),
            REFERENCE[drawn],
            values.detach(),
            cfg.kl,
        )
        along = {**method.advantages(cfg, r), "sampler_logps": now.detach(), "reference": REFERENCE[drawn]}
        columns = {"policy": torch.ones(n), "kl": torch.full((n,), cfg.kl)}
        result = method.loss(cfg, Output(logps=now, values=values), Batch(forest, columns, {}, along))
        optimizer.zero_grad()
        ((result.items * result.weights).sum() / result.weights.sum()).backward()
        optimizer.step()
        if step >= 2 * steps // 3:
            total += logits.detach().log_softmax(0)
    return total.log_softmax(0) if steps < 3 else (total / (steps - 2 * steps // 3)).log_softmax(0)


def kl(p, q):
    return (p.exp() * (p - q)).sum().item()


BETA = 0.5
TILTED = (REFERENCE + REWARDS / BETA).log_softmax(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("method", "cfg"),
    [
        (ppo, PPO(kl=BETA, whiten=False)),
        (rloo, RLOO(kl=BETA)),
        (grpo, GRPO(kl=BETA, kl_in="reward", scale=False)),
        (grpo, GRPO(kl=BETA, kl_estimate="k2", scale=False)),
    ],
    ids=["ppo", "rloo", "grpo, k1 in the reward", "grpo, k2 in the loss"],
)
def test_optimum_is_the_tilted_reference(method, cfg, seed):
    """max E[r] - beta KL(pi || ref) is pi_ref exp(r / beta) / Z; the start is 0.6 nats away."""
    assert kl(REFERENCE, TILTED) > 0.5
    assert kl(world(method, cfg, seed), TILTED) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_as_published_has_another_optimum(seed):
    """k3 in the loss has the gradient of KL(ref || pi): the optimum is beta ref / (lambda - r)."""
    low, high = REWARDS.max().item() + 1e-6, REWARDS.max().item() + 10
    for _ in range(100):
        middle = (low + high) / 2
        if (BETA * REFERENCE.exp() / (middle - REWARDS)).sum() > 1:
            low = middle
        else:
            high = middle
    expected = (BETA * REFERENCE.exp() / (high - REWARDS)).log()
    found = world(grpo, GRPO(kl=BETA, scale=False), seed)
    assert kl(found, expected) < 0.01
    assert kl(expected, TILTED) > 0.02


@pytest.mark.parametrize("reward", [0.1, 0.7, 100.1, 12345.678, -1e9])
@pytest.mark.parametrize("size", [2, 7, 16])
def test_what_does_not_vary_has_no_advantage_at_all(reward, size):
    """The mean of equal numbers is not always that number, and what is left, over next to nothing, counts."""
    rewards, groups = torch.full((3 * size,), reward).double(), torch.arange(3).repeat_interleave(size)
    for found in (
        over_mean(rewards, groups, True),
        over_mean(rewards, groups, False),
        over_others(rewards, groups),
        whitened(rewards.float()),
    ):
        assert not found.any()


def test_differences_of_large_rewards_are_not_lost():
    rewards, groups = 1e9 + torch.arange(4.0).double(), torch.zeros(4, dtype=torch.int64)
    assert over_mean(rewards, groups, False).tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert over_others(rewards, groups).tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 2])
