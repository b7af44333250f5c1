"""The weight of the KL, steered towards a target: Ziegler et al. (arXiv 1909.08593), section 2.2.

With e = clip(KL / target - 1, -0.2, 0.2) it is multiplied by 1 + e · answers / horizon after each rollout.
Read off the metrics of whole runs.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from kills import metrics, stumbling
from online_home import online_home

from posttrain.common.config import parse
from posttrain.common.step import StepContext
from posttrain.training.train import STEP, TrainConfig

PROMPTS, N, ROLLOUTS = 4, 8, 6
ANSWERS = PROMPTS * N
KL = 0.5  # the weight to begin with


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    online_home(folder, "Say number {}.", PROMPTS)
    return folder


def train(home, out, target, horizon, online=None, **method):
    """Metrics of `ROLLOUTS` rollouts of answers of one token, one update each."""
    steered = {} if target is None else {"kl_target": target, "kl_horizon": horizon}
    given = {
        "model": str(home / "base"),
        "method": {"name": "ppo", "kl": KL, **steered, **method},
        "online": {
            "prompts": str(home / "prompts.jsonl"),
            "judge": "judges:Evens",
            "n": N,
            "max_new_tokens": 1,
            "truncated": "judge",
            **(online or {}),
        },
        "steps": ROLLOUTS,
        "precision": "float32",
        "checkpoint_seconds": 1e-9,
        "optimizer": {"lr": 0.01, "warmup": 0, "schedule": "constant"},
    }
    STEP.run(parse(TrainConfig, given, "test"), StepContext(out, out / "state", "test"))
    return metrics(out)


def errors(lines, target):
    return [line["kl"] / target - 1 for line in lines]


def weights(lines, target, horizon):
    """Those of each rollout by the rule, from the KL measured in the rollouts before. A rollout in which
    the judge gave no score to some answers counts for the rest.
    """
    made = [KL]
    for line, error in zip(lines, errors(lines, target), strict=True):
        answers = round(ANSWERS * (1 - line["no_answer"]))
        made.append(made[-1] * (1 + min(max(error, -0.2), 0.2) * answers / horizon))
    return made[:-1]


def test_the_weight_is_steered_by_the_rule(home, tmp_path):
    """Too little KL lowers it and too much raises it, by no more than a fifth; between, in proportion."""
    before = train(home, tmp_path / "none", None, None)
    assert [line["kl_weight"] for line in before] == [KL] * ROLLOUTS
    # hardly moved, the weight leaves the run as it was: the KL of rollout 4 is then a tenth below the target
    target, horizon = before[3]["kl"] / 0.9, 10**6
    lines = train(home, tmp_path / "slow", target, horizon)
    found = errors(lines, target)
    assert found[0] < -0.2
    assert -0.2 < found[3] < -0.05
    assert found[-1] > 0.2
    assert [line["kl_weight"] for line in lines] == pytest.approx(weights(lines, target, horizon), rel=1e-12)
    assert lines[1]["kl_weight"] / KL - 1 == pytest.approx(-0.2 * ANSWERS / horizon, rel=1e-9)


@pytest.mark.parametrize("target", [1e-9, 1e9])
@pytest.mark.parametrize("horizon", [50, 200])
def test_both_ends_of_the_clip_and_the_horizon(home, tmp_path, target, horizon):
    """The estimate of the KL is of few answers: it may be below 0, and then the weight falls."""
    lines = train(home, tmp_path, target, horizon)
    ends = [0.2 if line["kl"] > target else -0.2 for line in lines]
    assert (max(ends) > 0) == (target < 1)
    factors = [b["kl_weight"] / a["kl_weight"] for a, b in pairwise(lines)]
    assert factors == pytest.approx([1 + end * ANSWERS / horizon for end in ends[:-1]], rel=1e-12)


def test_the_weight_stays_while_the_policy_stands_still(home, tmp_path):
    lines = train(home, tmp_path, 1e9, 100, critic_warmup=3)
    fall = 1 - 0.2 * ANSWERS / 100
    assert [line["kl_weight"] for line in lines] == pytest.approx(
        [KL] * 4 + [KL * fall**i for i in range(1, ROLLOUTS - 3)], rel=1e-12
    )


def test_an_answer_without_a_score_is_no_episode(home, tmp_path):
    lines = train(home, tmp_path, 1e9, 100, {"judge": "judges:Silent"})
    assert all(0 < line["no_answer"] < 1 for line in lines)
    assert [line["kl_weight"] for line in lines] == pytest.approx(weights(lines, 1e9, 100), rel=1e-12)


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_the_weight_in_the_metrics_is_the_one_in_force(home, tmp_path, where):
    """Answers of one token, so a return is its reward less weight · (log pi - log ref); in the loss, what is
    left of whitened advantages is weight · k3.
    """
    lines = train(home, tmp_path, 1e9, 100, kl_in=where)
    for line in lines[1:]:
        price = line["kl_weight"] * line["kl"] if where == "reward" else 0.0
        assert line["returns"] == pytest.approx(line["reward"] - price, abs=1e-5)
        in_loss = line["kl_weight"] * line["kl_k3"] if where == "loss" else 0.0
        assert line["policy_loss"] == pytest.approx(in_loss, abs=1e-5)
    moved = [b["kl_weight"] / a["kl_weight"] for a, b in pairwise(lines)]
    assert moved == pytest.approx([1 - 0.2 * ANSWERS / 100] * len(moved))
    # a weight one rollout off would be seen
    seen = "kl" if where == "reward" else "kl_k3"
    assert max(line[seen] * line["kl_weight"] for line in lines) * 0.06 > 1e-3


def test_the_weight_is_part_of_the_state(home, tmp_path, monkeypatch):
    """A run that is stopped at every third update goes on with the weight that it had."""
    calm = train(home, tmp_path / "calm", 0.05, 50)
    wanted = weights(calm, 0.05, 50)

    def run():
        try:
            return train(home, tmp_path / "hit", 0.05, 50)
        except KeyboardInterrupt:
            kept = torch.load(tmp_path / "hit/state/checkpoint.pt", weights_only=True)["source"]
            assert kept["kl"] == wanted[kept["number"] + 1]
            raise

    hit = stumbling(monkeypatch, run)
    assert [line["kl_weight"] for line in hit] == [line["kl_weight"] for line in calm]
    assert len({line["kl_weight"] for line in hit}) == ROLLOUTS
