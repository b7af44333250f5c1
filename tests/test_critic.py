"""What a critic starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_folder

from posttrain.models.load import load_model
from posttrain.training.critic import add_critic
from posttrain.training.methods.ppo import PPO

F32 = torch.float32


@pytest.mark.parametrize(
    ("aspects", "speak"),
    [
        (("overall",), [0]),
        (("safety", "overall"), [1]),
        (("overall.0", "overall.1", "overall.2"), [0, 1, 2]),
        (("helpfulness", "safety"), [0, 1]),
    ],
)
def test_a_value_head_starts_as_the_mean_of_the_heads_for_overall(
    tmp_path: Path, aspects: tuple[str, ...], speak: list[int]
) -> None:
    tiny_folder("llama", tmp_path / "base")
    reward = load_model(tmp_path / "base", dtype=F32, reward_heads=aspects, seed=3)
    assert reward.reward_head is not None
    reward.save(tmp_path / "reward")
    policy = load_model(tmp_path / "base", dtype=F32, train=True)
    add_critic(policy, PPO(name="ppo", critic=str(tmp_path / "reward")), seed=0, device="cpu")
    assert policy.critic is not None
    assert policy.critic.value_head is not None
    wanted = torch.stack([reward.reward_head.weight[i] for i in speak]).mean(0)
    assert torch.equal(policy.critic.value_head.weight[0], wanted)
    assert policy.critic.reward_head is None


def test_a_critic_without_reward_heads_starts_at_nought(tmp_path: Path) -> None:
    tiny_folder("llama", tmp_path / "base")
    policy = load_model(tmp_path / "base", dtype=F32, train=True)
    add_critic(policy, PPO(name="ppo", critic=str(tmp_path / "base")), seed=0, device="cpu")
    assert policy.critic is not None
    assert policy.critic.value_head is not None
    assert not policy.critic.value_head.weight.any()
