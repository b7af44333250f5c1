"""The models that stand beside the policy: a critic for its values, a frozen copy for its KL."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from posttrain.common.errors import ConfigError
from posttrain.models.heads import heads_for, new_head
from posttrain.models.load import Model, load_model
from posttrain.models.lora import add_adapter, is_lora
from posttrain.models.spec import ModelSpec
from posttrain.models.vocabulary import same_vocabulary

if TYPE_CHECKING:
    from posttrain.training.methods.ppo import PPO

CRITIC = "critic"  # name of a critic's LoRA


def add_critic(model: Model, cfg: PPO, seed: int, device: str) -> None:
    """Give the policy its critic, as configured, in float32 and ready to be trained.

    A model of its own (the reward model, say) that has reward heads and no value head starts with the mean of
    those for "overall" (of all, where none is) as value head: its estimate is then the reward it would give
    if the answer ended here. Every other value head starts at 0, so that the first advantages are the rewards
    themselves.
    Raises ConfigError for a critic whose vocabulary is another one.
    """
    if cfg.critic is None:
        model.value_head = _zero_head(model, seed, device)
        return
    if cfg.critic == "lora":
        model.critic = _lora_critic(model, seed, device)
        return
    assert isinstance(cfg.critic, ModelSpec)
    critic = load_model(cfg.critic, dtype=torch.float32, device=device, seed=seed, train=True)
    same_vocabulary(model, critic, "method.critic")
    if critic.value_head is None:
        critic.value_head = _zero_head(critic, seed, device)
        if critic.reward_head is not None:
            with torch.no_grad():
                speak = heads_for(critic.aspects, None) or range(len(critic.aspects))
                critic.value_head.weight.copy_(critic.reward_head.weight[list(speak)].mean(0, keepdim=True))
    critic.reward_head = None
    _freeze_lm_head(critic)
    model.critic = critic


def _zero_head(model: Model, seed: int, device: str) -> torch.nn.Linear:
    head = new_head(1, model.base.config.get_text_config().hidden_size, seed).to(device)
    torch.nn.init.zeros_(head.weight)
    return head.requires_grad_(True)


def _freeze_lm_head(critic: Model) -> None:
    head, embedding = critic.base.get_output_embeddings(), critic.base.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        head.requires_grad_(False)


def _lora_critic(model: Model, seed: int, device: str) -> Model:
    """A second LoRA on the policy's base, of the same shape as the policy's own."""
    if not is_lora(model.hf):
        raise ConfigError("method.critic: lora needs a policy with a LoRA (model.lora)")
    add_adapter(model.hf, CRITIC, seed)
    return replace(
        model, adapters=(CRITIC,), critic=None, reward_head=None, value_head=_zero_head(model, seed, device)
    )


def critic_parameters(model: Model) -> set[int]:
    """Identities of the parameters that only values reach."""
    found = {id(p) for name, p in model.named_parameters() if name.startswith("critic.") or CRITIC in name}
    return found | {id(p) for head in (model.value_head,) if head is not None for p in head.parameters()}


def frozen_copy(model: Model) -> Model:
    """The policy as it is now, never to be trained. Of a LoRA, its base alone, which costs no memory: before
    training, base and policy are the same model.
    """
    view = replace(model, critic=None, reward_head=None, value_head=None)
    if is_lora(model.hf):
        return replace(view, adapters=())
    return replace(view, hf=copy.deepcopy(model.hf).eval().requires_grad_(False))
