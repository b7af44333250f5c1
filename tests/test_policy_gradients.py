"""Gradients of whole policy-gradient losses, from rewards to logits, against a dense float64 derivation."""

from __future__ import annotations

import dense_policy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.models.forest import Branch
from posttrain.models.forward import Output
from posttrain.training.advantages import Rollout, gae
from posttrain.training.methods import method_named
from posttrain.training.methods.base import Example
from posttrain.training.offline import grow
from posttrain.training.source import Data

F64 = torch.float64
VOCAB = 12
# (prompt, [(answer, which of its tokens are learned)]): answers of 1 to 6 tokens, beginnings in common, one
# answer twice, a token in the middle that is not learned, as many answers a prompt as were scored
PROMPTS = [
    ([1, 2], [([3, 4, 5, 6, 7, 0], "111111"), ([3, 4, 8, 0], "1111"), ([9, 0], "11")]),
    ([1, 5, 5], [([3, 0], "11"), ([3, 0], "11"), ([6, 2, 7, 7, 0], "11011"), ([4], "1")]),
    ([7], [([10, 11, 10], "111"), ([11, 10, 3, 2], "1111")]),
]
REWARDS = [1.0, -0.5, 0.25, 2.0, 0.5, 0.0, -1.0, 0.3, 0.9]  # -1: an answer that was cut off
GROUPS = [0] * 3 + [1] * 4 + [2] * 2
SIZES = [said.count("1") for _, answers in PROMPTS for _, said in answers]


class World:
    """Free logits and values: of the token before and of its place. `old` is a way off `now`."""

    def __init__(self, seed, apart):
        g = torch.Generator().manual_seed(seed)
        self.free = [torch.randn(n, m, generator=g, dtype=F64) for n in (VOCAB, 10) for m in (VOCAB, 1)]
        count = sum(SIZES)
        now, values = (x.detach() for x in self.dense(self.free))
        per_answer = torch.randn(len(SIZES), generator=g, dtype=F64).repeat_interleave(torch.tensor(SIZES))
        noise = torch.randn(count, generator=g, dtype=F64)
        self.old = now - apart * (0.7 * per_answer + 0.7 * noise)
        self.sampler = self.old + 0.5 * torch.randn(count, generator=g, dtype=F64)
        self.reference = now + 0.5 * torch.randn(count, generator=g, dtype=F64)
        self.old_values = values + 0.4 * torch.randn(count, generator=g, dtype=F64)

    def dense(self, free, temperature=1.0):
        """Log-probs and values of the learned tokens, answer by answer, by a plain softmax."""
        by_token, value_by_token, by_place, value_by_place = free
        logps, values = [], []
        for prompt, answers in PROMPTS:
            for tokens, said in answers:
                path = prompt + tokens
                for t, token in enumerate(tokens):
                    if said[t] == "1":
                        before = len(prompt) + t - 1
                        logits = (by_token[path[before]] + by_place[before]) / temperature
                        logps.append(logits[token] - logits.exp().sum().log())
                        values.append((value_by_token[path[before]] + value_by_place[before])[0])
        return torch.stack(logps), torch.stack(values)


def ours(cfg, world, chosen, several, beta, learns, temperature=1.0):
    """The same from rewards to gradients as the loop does it, but for the model: one minibatch of prompts."""
    method = method_named(cfg.name)
    free = [x.clone().requires_grad_() for x in world.free]
    sizes = torch.tensor(SIZES)
    values = world.old_values if cfg.name == "ppo" else None
    old = world.old if several else world.dense(world.free, temperature)[0]
    rollout = Rollout(
        torch.tensor(REWARDS, dtype=F64), torch.tensor(GROUPS), sizes, old, world.reference, values, beta
    )
    along = {"sampler_logps": world.sampler, **method.advantages(cfg, rollout)}
    if several:
        along["old_logps"] = old
    if cfg.kl_in == "loss":
        along["reference"] = world.reference
    columns = {"policy": float(learns), "kl": beta}
    examples = [
        Example(
            str(i),
            tuple(
                Branch(p + tokens, [False] * len(p) + [c == "1" for c in said]) for tokens, said in answers
            ),
            columns,
        )
        for i, (p, answers) in enumerate(PROMPTS)
    ]
    counts = [sum(s for s, g in zip(SIZES, GROUPS, strict=True) if g == i) for i in range(len(PROMPTS))]
    data = Data(examples, along={k: v.split(counts) for k, v in along.items()}, temperature=temperature)
    batch = data.batch(chosen, grow([examples[i] for i in chosen]), "cpu")
    source = batch.forest.sources
    token, place = batch.forest.tokens[source], batch.forest.positions[source]
    logits = (free[0][token] + free[2][place]) / batch.temperature
    logps = logits.log_softmax(-1).gather(1, batch.forest.targets[:, None]).squeeze(1)
    result = method.loss(cfg, Output(logps=logps, values=(free[1][token] + free[3][place]).squeeze(1)), batch)
    ((result.items * result.weights).sum() / result.weights.sum()).backward()
    return [x.grad for x in free]


def theirs(cfg, world, chosen, several, beta, learns, temperature=1.0):
    free = [x.clone().requires_grad_() for x in world.free]
    logps, values = world.dense(free, temperature)
    cut = lambda flat: dense_policy.split(flat, SIZES)  # noqa: E731
    seen = set()
    dense_policy.objective(
        cfg.model_dump(), REWARDS, GROUPS, cut(logps), cut(values) if cfg.name == "ppo" else None,
        old=cut(world.old if several else logps.detach()), sampler=cut(world.sampler),
        reference=cut(world.reference), old_values=cut(world.old_values), beta=beta, learns=learns,
        chosen=chosen, seen=seen,
    ).backward()  # fmt: skip
    return [x.grad for x in free], seen


def equal(cfg, seed, *, apart=0.5, chosen=(2, 0, 1), several=True, beta=0.25, learns=True, temperature=1.0):
    """Check one case; returns on which sides of the clips its tokens lie."""
    world = World(seed, apart)
    how = {"several": several, "beta": beta, "learns": learns, "temperature": temperature}
    found = ours(cfg, world, list(chosen), **how)
    wanted, seen = theirs(cfg, world, chosen, **how)
    for name, a, b in zip(("logits", "values", "logits", "values"), found, wanted, strict=True):
        if name == "values" and cfg.name != "ppo":
            assert a is None
            assert b is None
            continue
        none = torch.zeros_like(b if b is not None else world.free[0])
        # lengths and weights of the KL are float32
        torch.testing.assert_close(a if a is not None else none, b, rtol=1e-6, atol=1e-8)
        assert b.norm() > 1e-3 or (name == "logits" and not learns)
    return seen


def config(name, **fields):
    return method_named(name).config(**fields)


RULES = [
    ("ppo", {}),
    ("ppo", {"whiten": False, "gamma": 0.9, "lam": 0.8}),
    ("ppo", {"kl_in": "loss", "kl_estimate": "k2", "value_clip": 0.0}),
    ("ppo", {"value_weight": 2.0, "value_clip": 0.1}),
    ("rloo", {}),
    ("rloo", {"kl_in": "loss"}),
    ("grpo", {}),
    ("grpo", {"kl_estimate": "k2"}),
    ("grpo", {"kl_in": "reward"}),
    ("grpo", {"kl": 0.0, "scale": False}),
    ("grpo", {"ratio": "sequence"}),
    ("grpo", {"ratio": "sequence", "kl_in": "reward", "scale": False}),
]
SIDES = {"high, good", "high, bad", "low, good", "low, bad", "inside"}


@pytest.mark.parametrize("normalise", ["tokens", "responses", "sum"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join([rule[0], *map(str, rule[1].values())]))
@pytest.mark.parametrize("bounds", [(0.2, None, None), (0.2, 0.35, 1.2)], ids=["even", "clip_high"])
def test_a_step_has_the_gradient_of_the_dense_derivation(normalise, rule, bounds):
    """In every case some ratios lie beyond each end of the clip and some within, with advantages of each
    sign.
    """
    clip, high, truncated = bounds
    cfg = config(
        rule[0], normalise=normalise, clip=clip, clip_high=high, importance_clip=truncated, **rule[1]
    )
    seen = set()
    for seed in range(4):
        seen |= equal(cfg, seed, apart=0.9, beta=0.25 if cfg.kl else 0.0)
    assert seen >= SIDES
    assert cfg.name != "ppo" or not cfg.value_clip or seen >= {"value held", "value free"}


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_a_minibatch_learns_from_advantages_of_the_whole_rollout(name):
    for chosen in ([1], [0, 2], [2, 1]):
        equal(config(name), 7, chosen=chosen)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_first_update_needs_no_old_log_probs(ratio):
    """With one update a rollout the policy that drew is the policy that learns, whatever its sampler said."""
    for clip in (None, 1.1):
        seen = equal(config("grpo", ratio=ratio, importance_clip=clip), 3, several=False)
        assert seen == {"inside"}
        equal(config("ppo", importance_clip=clip, kl_in="loss"), 3, several=False)


def test_a_critic_that_warms_up_moves_no_policy():
    for where in ("loss", "reward"):
        equal(config("ppo", kl_in=where), 5, learns=False)


@pytest.mark.parametrize("temperature", [0.7, 1.6])
@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_the_temperature_is_in_the_gradient(name, temperature):
    equal(config(name), 11, temperature=temperature)
    equal(config(name), 11, temperature=temperature, several=False)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    gamma=st.sampled_from([0.5, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_gae_is_the_double_sum(sizes, gamma, lam, seed):
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(sum(sizes), generator=g, dtype=F64) for _ in range(2))
    gained, returns = gae(rewards, values, torch.tensor(sizes), gamma, lam)
    wanted = torch.cat(dense_policy.gae(rewards.split(sizes), values.split(sizes), gamma, lam))
    torch.testing.assert_close(gained, wanted)
    torch.testing.assert_close(returns, wanted + values)
