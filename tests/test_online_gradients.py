"""What the whole step learns from an answer: its gradients, before each update, against a dense derivation by
plain transformers in float64, at a temperature other than 1.
"""

from __future__ import annotations

from copy import deepcopy

import dense_policy
import pytest
import torch
from kills import kill_proof, metrics, stumbling
from online_home import online_home
from safetensors.torch import load_file
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.engines.local import LocalEngine
from posttrain.engines.protocol import Completion
from posttrain.formats import write_records
from posttrain.models.forest import Branch, plant, tree_of
from posttrain.models.forward import forward
from posttrain.models.load import load_model
from posttrain.records import Document, Provenance
from posttrain.training.critic import add_critic, critic_parameters
from posttrain.training.methods.ppo import PPO
from posttrain.training.optim import Optimizer
from posttrain.training.train import STEP, TrainConfig

F64 = torch.float64
TEMPERATURE, LR = 0.7, 0.01
TEXTS = [f"Line {i} of a small text." for i in range(4)]
# by prompt: (answer, how it ended)
ANSWERS = [
    [([11, 12, 30, 41, 2], "stop"), ([11, 13, 2], "stop"), ([50, 61, 72, 83, 94], "length")],
    [([21, 2], "stop"), ([22, 31, 40, 2], "stop"), ([21, 33, 35, 37, 2], "stop")],
    [([60, 2], "stop"), ([61, 63, 65], "length"), ([66, 67, 2], "stop")],
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    online_home(folder, "Say number {}.", len(ANSWERS))
    near = AutoModelForCausalLM.from_pretrained(folder / "base")
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in near.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    near.save_pretrained(folder / "near")
    tiny_tokenizer().save_pretrained(folder / "near")
    tiny_folder("qwen2", folder / "other", seed=5)
    reward = load_model(folder / "other", dtype=torch.float32, reward_heads=("overall",), seed=3)
    reward.save(folder / "reward")
    texts = [Document(text=text, provenance=Provenance(id=f"t{i}")) for i, text in enumerate(TEXTS)]
    write_records(folder / "texts.jsonl", texts)
    return folder


def fields(home, method, online=None, **others):
    if method.get("critic") == "reward":
        method = {**method, "critic": str(home / "reward")}
    return {
        "model": str(home / "base"),
        "method": method,
        "online": {
            "prompts": str(home / "prompts.jsonl"),
            "judge": "judges:Evens",
            "n": 3,
            "max_new_tokens": 5,
            "truncated": "judge",
            "temperature": TEMPERATURE,
            **(online or {}),
        },
        "precision": "float32",
        "optimizer": {"lr": LR, "warmup": 0, "schedule": "constant"},
        **others,
    }


def train(home, out, method, online=None, **others):
    cfg = parse(TrainConfig, fields(home, method, online, **others), "test")
    return STEP.run(cfg, StepContext(out, out / "state", "test"))


@pytest.fixture
def updates(monkeypatch):
    """(weights, gradients) at each update, before it is made, in the order of the model's parameters."""
    taken, step = [], Optimizer.step

    def watched(self, weight, factor):
        grads = [torch.zeros_like(m) if m.grad is None else m.grad / weight for m in self.masters]
        taken.append(([p.detach().clone() for p in self.masters], grads))
        return step(self, weight, factor)

    monkeypatch.setattr(Optimizer, "step", watched)
    return taken


class Dense:
    """The policy (and a critic of its own) by transformers, in float64."""

    def __init__(self, folder, critic=None):
        self.policy = AutoModelForCausalLM.from_pretrained(folder, dtype=F64, attn_implementation="eager")
        self.critic = self.policy
        if critic is not None:
            self.critic = AutoModelForCausalLM.from_pretrained(critic, dtype=F64, attn_implementation="eager")
        self.head = torch.zeros(1, self.policy.config.hidden_size, dtype=F64, requires_grad=True)

    def parameters(self, heads):
        own = list(self.policy.parameters())
        critic = [] if self.critic is self.policy else list(self.critic.parameters())
        return [*own, *critic, self.head] if heads else own

    def at(self, weights):
        """A copy with these weights."""
        copy = deepcopy(self)
        mine = copy.parameters(len(weights) > len(list(self.policy.parameters())))
        for p, w in zip(mine, weights, strict=True):
            assert p.shape == w.shape
            p.data = w.double()
        return copy

    def logps(self, path, first, temperature):
        """Of the tokens from `first` on."""
        logits = self.policy(torch.tensor([path])).logits[0, first - 1 : -1] / temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(path[first:])[:, None])[:, 0]

    def values(self, path, first):
        return (self.critic.model(torch.tensor([path])).last_hidden_state[0, first - 1 : -1] @ self.head.T)[
            :, 0
        ]


@pytest.fixture
def scripted(home, monkeypatch):
    """The sampler says ANSWERS, and claims log-probs a way off the policy's. Returns what it was asked."""
    dense, asked = Dense(home / "base"), []

    @torch.no_grad()
    def generate(self, prompts, params, label="sample"):
        said = {tuple(ids): answers for ids, answers in zip(sorted(prompts), ANSWERS, strict=True)}
        asked[:] = sorted(map(list, prompts))
        out = []
        for ids in prompts:
            row = []
            for tokens, finish in said[tuple(ids)]:
                logps = dense.logps([*ids, *tokens], len(ids), params.temperature)
                off = 0.3 * torch.sin(2.0 * torch.arange(len(tokens)) + tokens[0])
                row.append(Completion(tuple(tokens), tuple((logps + off).tolist()), finish))
            out.append(row)
        return out

    monkeypatch.setattr(LocalEngine, "generate", generate)
    return asked


def learned(asked, truncated):
    """(prompt's number, path, first token of the answer, reward) of the answers that have a reward."""
    found = []
    for i, (ids, answers) in enumerate(zip(asked, ANSWERS, strict=True)):
        for tokens, finish in answers:
            reward = sum(t % 2 == 0 for t in tokens) / len(tokens)  # judges.Evens
            if finish == "length" and truncated != "judge":
                reward = truncated
            if reward is not None:
                found.append((i, [*ids, *tokens], len(ids), reward))
    return found


CASES = [
    ({"name": "ppo", "kl": 0.2, "kl_target": 0.5, "kl_horizon": 20}, {"passes": 2, "truncated": -1.0}),
    ({"name": "ppo", "kl": 0.1, "critic": "reward", "critic_warmup": 1, "critic_lr": 0.003}, {"passes": 2}),
    ({"name": "ppo", "kl": 0.2, "kl_in": "loss", "whiten": False, "normalise": "sum"}, {"passes": 2}),
    ({"name": "rloo", "kl": 0.1}, {"passes": 2, "truncated": None}),
    ({"name": "rloo", "kl": 0.1}, {}),
    ({"name": "grpo", "kl": 0.3}, {"passes": 2, "truncated": -1.0}),
    ({"name": "grpo", "kl": 0.3, "kl_estimate": "k2", "clip_high": 0.4}, {"passes": 2}),
    ({"name": "grpo", "ratio": "sequence", "clip": 0.05, "importance_clip": 1.1}, {"passes": 2}),
]


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_each_update_has_the_gradient_of_the_dense_derivation(home, tmp_path, case, updates, scripted):
    """Two rollouts, in the second of which the policy is no longer the one it was."""
    method, online = case
    near = str(home / "near")
    train(home, tmp_path, method, online, steps=4, reference=near, micro_tokens=48)
    cfg = parse(TrainConfig, fields(home, method, online, steps=4, reference=near), "test")
    rule, truncated = cfg.method.model_dump(), cfg.online.truncated
    answers = learned(scripted, truncated)
    groups, rewards = [a[0] for a in answers], [a[3] for a in answers]
    start = Dense(home / "base", home / "reward" if method.get("critic") == "reward" else None)
    off = [0.3 * torch.sin(2.0 * torch.arange(len(p) - f, dtype=F64) + p[f]) for _, p, f, _ in answers]
    with torch.no_grad():
        sampler = [start.logps(p, f, TEMPERATURE) + o for (_, p, f, _), o in zip(answers, off, strict=True)]
        reference = [Dense(near).logps(p, f, TEMPERATURE) for _, p, f, _ in answers]
    passes, beta, seen = cfg.online.passes, cfg.method.kl, set()
    lines = metrics(tmp_path)
    assert len(lines) == len(updates) == 4
    for number, (weights, grads) in enumerate(updates):
        if number % passes == 0:
            with torch.no_grad():
                before = start.at(weights)
                old = [before.logps(p, f, TEMPERATURE) for _, p, f, _ in answers]
                old_values = [before.values(p, f) for _, p, f, _ in answers]
            assert lines[number]["kl_weight"] == pytest.approx(beta)
        model = start.at(weights)
        now = [model.logps(p, f, TEMPERATURE) for _, p, f, _ in answers]
        values = [model.values(p, f) for _, p, f, _ in answers] if rule["name"] == "ppo" else None
        dense_policy.objective(
            rule, rewards, groups, now, values, old=old, sampler=sampler, reference=reference,
            old_values=old_values, beta=beta, learns=number // passes >= rule.get("critic_warmup", 0),
            seen=seen,
        ).backward()  # fmt: skip
        compare(model, grads, rule["name"] == "ppo")
        if number % passes == passes - 1 and rule.get("kl_target"):
            kl = sum((o - r).sum().item() for o, r in zip(old, reference, strict=True)) / len(old)
            error = min(max(kl / rule["kl_target"] - 1, -0.2), 0.2)
            beta *= 1 + error * len(old) / rule["kl_horizon"]
    assert seen > {"inside"} or passes == 1


def test_comparisons_of_answers_are_learned_at_their_temperature(home, tmp_path, updates, scripted):
    """Online DPO (arXiv 2305.18290, equation 7) of the best and worst answer to each prompt."""
    near = str(home / "near")
    method = {"name": "dpo", "beta": 0.5}
    train(home, tmp_path, method, {"truncated": -1.0}, steps=2, reference=near, micro_tokens=48)
    answers = learned(scripted, -1.0)
    for weights, grads in updates:
        model, frozen = Dense(home / "base").at(weights), Dense(near)
        costs = []
        for prompt in range(len(ANSWERS)):
            own = sorted((a for a in answers if a[0] == prompt), key=lambda a: a[3])
            assert own[0][3] < own[1][3] < own[2][3]
            gain = []
            for _, path, first, _ in (own[-1], own[0]):
                with torch.no_grad():
                    before = frozen.logps(path, first, TEMPERATURE).sum()
                gain.append(model.logps(path, first, TEMPERATURE).sum() - before)
            costs.append((1 + (-0.5 * (gain[0] - gain[1])).exp()).log())
        torch.stack(costs).mean().backward()
        compare(model, grads, heads=False)


def compare(model, grads, heads):
    wanted = [p.grad for p in model.parameters(heads)]
    size = sum(w.norm() ** 2 for w in wanted if w is not None) ** 0.5
    assert size > 1e-3
    for found, w in zip(grads, wanted, strict=True):
        apart = found.double() if w is None else found.double() - w
        assert apart.norm() < 2e-5 * size


def test_rows_learned_beside_add_their_mean_a_token(home, tmp_path, updates, scripted):
    mix = {"data": str(home / "texts.jsonl"), "weight": 0.7, "rows": len(TEXTS)}
    train(home, tmp_path / "mix", {"name": "rloo"}, {"mix": mix}, steps=1, micro_tokens=48)
    train(home, tmp_path / "plain", {"name": "rloo"}, steps=1)
    (weights, mixed), (_, plain) = updates
    model, tokenizer = Dense(home / "base").at(weights), tiny_tokenizer()
    paths = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]
    costs = torch.cat([-model.logps(path, 1, 1.0) for path in paths])
    (0.7 * costs.mean()).backward()
    assert metrics(tmp_path / "mix")[0]["mix_loss"] == pytest.approx(costs.mean().item(), rel=1e-5)
    compare(model, [m - p for m, p in zip(mixed, plain, strict=True)], heads=False)


def test_sampler_and_trainer_agree_at_a_temperature(home, tmp_path, monkeypatch):
    said, generate = [], LocalEngine.generate

    def heard(self, prompts, *args):
        said.append((prompts, generate(self, prompts, *args)))
        return said[-1][1]

    monkeypatch.setattr(LocalEngine, "generate", heard)
    train(home, tmp_path, {"name": "ppo"}, {"n": 16, "passes": 2}, steps=4)
    for line in metrics(tmp_path):
        assert line["sampler_mismatch"] < 1e-6  # the mean
        assert line["sampler_ratio_max"] < 1 + 1e-5
    dense = Dense(home / "base")
    with torch.no_grad():
        for ids, completions in zip(*said[0], strict=True):
            for completion in completions:
                wanted = dense.logps([*ids, *completion.token_ids], len(ids), TEMPERATURE)
                assert (torch.tensor(completion.logps) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("critic", ["head", "model"])
def test_the_critic_alone_learns_at_its_own_rate(home, tmp_path, critic, updates, scripted):
    """AdamW's first step has the size of the learning rate wherever the gradient is not next to nothing."""
    method = {"name": "ppo", "critic_lr": 4 * LR, **({"critic": "reward"} if critic == "model" else {})}
    train(home, tmp_path, method, {"passes": 2}, steps=2)
    policy = load_file(home / "base/model.safetensors")
    own = load_file(home / "reward/model.safetensors")
    moved = {"policy": [], "critic": []}
    for before, after in zip(updates[0][0], updates[1][0], strict=True):
        of_policy = any(before.shape == w.shape and torch.equal(before, w) for w in policy.values())
        of_critic = any(before.shape == w.shape and torch.equal(before, w) for w in own.values())
        assert not (of_policy and of_critic)
        whose = "policy" if of_policy else "critic"
        moved[whose].append((after - before).abs().max().item())
        assert of_policy or of_critic or before.shape == (1, 32)  # the value head
    assert len(moved["policy"]) == len(list(Dense(home / "base").policy.parameters()))
    assert len(moved["critic"]) == (1 if critic == "head" else len(moved["policy"]) + 1)
    assert moved["policy"] == pytest.approx([LR] * len(moved["policy"]), rel=1e-2)
    assert moved["critic"] == pytest.approx([4 * LR] * len(moved["critic"]), rel=1e-2)


@pytest.mark.parametrize("critic", [None, "reward", "lora"])
def test_a_critic_is_what_values_reach_and_log_probs_do_not(home, critic):
    spec = {"path": str(home / "base"), **({"lora": {"rank": 2}} if critic == "lora" else {})}
    cfg = parse(TrainConfig, fields(home, {"name": "ppo"}, model=spec), "test")
    model = load_model(cfg.model, dtype=torch.float32, train=True)
    given = str(home / "reward") if critic == "reward" else critic
    add_critic(model, PPO(critic=given), seed=0, device="cpu")
    with torch.no_grad():  # value heads and LoRAs start at nought
        for _, p in model.named_parameters():
            p.add_(0.01)
    forest = plant([tree_of([Branch([5, 6, 7], [False, True, True])])])
    out = forward(model, forest, frozenset({"logps", "values"}))
    named = dict(model.named_parameters())
    reached = {}
    for name in ("logps", "values"):
        grads = torch.autograd.grad(
            getattr(out, name).sum(), list(named.values()), allow_unused=True, retain_graph=True
        )
        reached[name] = {k for k, g in zip(named, grads, strict=True) if g is not None and g.abs().max() > 0}
    alone = reached["values"] - reached["logps"]
    assert alone
    assert {id(named[name]) for name in alone} == critic_parameters(model) & set(map(id, named.values()))


def test_an_interrupted_run_with_rows_beside_goes_on_to_the_bit(home, tmp_path, monkeypatch):
    """It stops in the middle of rollouts and between them; the rows are drawn in passes of their own."""
    mix = {"data": str(home / "texts.jsonl"), "rows": 3}

    def run(name):
        online = {"passes": 3, "mix": mix}
        train(home, tmp_path / name, {"name": "grpo"}, online, steps=11, checkpoint_seconds=1e-9)

    run("calm")
    stumbling(monkeypatch, lambda: run("hit"))
    calm, hit = (load_file(tmp_path / name / "model/model.safetensors") for name in ("calm", "hit"))
    assert all(torch.equal(calm[k], hit[k]) for k in calm)
    losses = [[line["mix_loss"] for line in metrics(tmp_path / name)] for name in ("calm", "hit")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_killed_at_random_instants_with_rows_beside(home, tmp_path):
    mix = {"data": str(home / "texts.jsonl"), "rows": 3}
    given = fields(home, {"name": "ppo", "kl_target": 0.5}, {"passes": 2, "mix": mix}, epochs=40)
    assert kill_proof(tmp_path, given, kills=6, seed=2) >= 3
