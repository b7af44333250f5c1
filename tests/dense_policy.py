"""The policy-gradient objectives once more, a token at a time in float64, with no line of posttrain.

`rule` is a method's config as plain data. All that belongs to tokens is a list with a [T_i] tensor an answer.
"""

from __future__ import annotations

import torch


def split(flat, sizes):
    return list(flat.split(list(sizes)))


def token_rewards(rule, rewards, old, reference, beta):
    """-beta (log pi - log ref) a token where the KL is in the reward, and the answer's reward at the last."""
    made = []
    for i, reward in enumerate(rewards):
        mine = torch.zeros(len(old[i]), dtype=torch.float64)
        for t in range(len(mine)):
            if rule["kl_in"] == "reward" and rule["kl"]:
                mine[t] -= beta * (old[i][t] - reference[i][t])
        mine[-1] += reward
        made.append(mine)
    return made


def gae(rewards, values, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t; V ends at 0."""
    made = []
    for r, v in zip(rewards, values, strict=True):
        n = len(r)
        after = [*v[1:].tolist(), 0.0]
        delta = [r[t].item() + gamma * after[t] - v[t].item() for t in range(n)]
        gained = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]
        made.append(torch.tensor(gained, dtype=torch.float64))
    return made


def advantages(rule, rewards, groups, old, reference, old_values, beta):
    """A list of [T_i] advantages, and of returns where there is a critic."""
    per_token = token_rewards(rule, rewards, old, reference, beta)
    if rule["name"] == "ppo":
        gained = gae(per_token, old_values, rule["gamma"], rule["lam"])
        returns = [a + v for a, v in zip(gained, old_values, strict=True)]
        if rule["whiten"]:
            every = torch.cat(gained)
            gained = [(a - every.mean()) / (every.std() + 1e-8) for a in gained]
        return gained, returns
    whole = [each.sum().item() for each in per_token]
    made = []
    for i, group in enumerate(groups):
        members = [whole[j] for j in range(len(whole)) if groups[j] == group]
        mean = sum(members) / len(members)
        if rule["name"] == "rloo":
            others = [whole[j] for j in range(len(whole)) if groups[j] == group and j != i]
            gain = whole[i] - sum(others) / len(others)
        else:
            gain = whole[i] - mean
            if rule["scale"]:
                gain /= (sum((x - mean) ** 2 for x in members) / (len(members) - 1)) ** 0.5 + 1e-4
        made.append(torch.full((len(old[i]),), gain, dtype=torch.float64))
    return made, None


def objective(
    rule, rewards, groups, now, values=None, *,
    old, sampler, reference=None, old_values=None, beta=0.0, learns=True, chosen=None, seen=None,
):  # fmt: skip
    """The loss of the answers whose group is in `chosen` (all). now, values carry gradients; old: before any
    update of the rollout. seen: a set that is told on which side of the clip each token lies.
    """
    gained, returns = advantages(rule, rewards, groups, old, reference, old_values, beta)
    low, high = 1 - rule["clip"], 1 + (rule["clip_high"] if rule["clip_high"] is not None else rule["clip"])
    answers = []
    for i in range(len(rewards)):
        if chosen is not None and groups[i] not in chosen:
            continue
        logs = [now[i][t] - old[i][t].item() for t in range(len(now[i]))]
        if rule.get("ratio") == "sequence":
            logs = [sum(logs) / len(logs)] * len(logs)
        costs = []
        for t, log in enumerate(logs):
            rho, a = log.exp(), gained[i][t].item()
            if seen is not None:
                side = "high" if rho > high else "low" if rho < low else ""
                seen.add(f"{side}, {'good' if a > 0 else 'bad'}" if side else "inside")
            # Schulman et al. by cases: what is good may gain up to `high`, what is bad may lose down to `low`
            held = (rho if rho < high else rho.new_tensor(high)) if a > 0 else (
                rho if rho > low else rho.new_tensor(low))  # fmt: skip
            weight = 1.0
            if rule["importance_clip"] is not None:
                weight = min((old[i][t] - sampler[i][t]).exp().item(), rule["importance_clip"])
            cost = -weight * a * held
            if rule["kl_in"] == "loss" and rule["kl"]:
                u = now[i][t] - reference[i][t].item()
                cost = cost + beta * (u * u / 2 if rule["kl_estimate"] == "k2" else (-u).exp() - 1 + u)
            cost = cost * float(learns)
            if values is not None:
                cost = cost + rule["value_weight"] * value_cost(
                    values[i][t], old_values[i][t].item(), returns[i][t].item(), rule["value_clip"], seen
                )
            costs.append(cost)
        answers.append(torch.stack(costs))
    if rule["normalise"] == "tokens":
        return torch.cat(answers).mean()
    if rule["normalise"] == "responses":
        return torch.stack([each.mean() for each in answers]).mean()
    return torch.stack([each.sum() for each in answers]).mean()


def value_cost(value, old, wanted, clip, seen):
    """Half the square of the error; beyond `clip` from the old value, of that of the value held there, where
    that is the larger.
    """
    plain = (value - wanted) ** 2 / 2
    if not clip or abs(value.item() - old) <= clip:
        return plain
    held = old + clip if value > old else old - clip
    constant = (held - wanted) ** 2 / 2
    if seen is not None:
        seen.add("value held" if constant > plain else "value free")
    return plain.new_tensor(constant) if constant > plain else plain
