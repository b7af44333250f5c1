"""Training objectives, one file each. `METHODS` is the whole list; others plug in by entry point or dotted
path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.common.config import nearest, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import known, resolve
from posttrain.training.methods import dpo, grpo, kto, ppo, pretrain, reward, rloo, sft
from posttrain.training.methods.base import Method, MethodConfig

METHODS: dict[str, Method] = {
    "pretrain": pretrain.METHOD,
    "sft": sft.METHOD,
    "reward": reward.METHOD,
    "dpo": dpo.METHOD,
    "kto": kto.METHOD,
    "ppo": ppo.METHOD,
    "grpo": grpo.METHOD,
    "rloo": rloo.METHOD,
}


def method_named(name: str) -> Method:
    """The objective called `name`. Raises ConfigError with the nearest one."""
    found = resolve("methods", name, METHODS)
    if not isinstance(found, Method):
        raise ConfigError(f"method '{name}' is a {type(found).__name__}, not a posttrain Method")
    return found


def method_config(value: Mapping[str, Any] | str | MethodConfig) -> MethodConfig:
    """A config from a recipe's mapping (`{name: dpo, beta: 0.1}`), a bare name, or itself."""
    if isinstance(value, MethodConfig):
        return value
    given = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in given:
        raise ConfigError(f"method: 'name' is missing; {nearest('', known('methods', METHODS))}")
    return parse(method_named(str(given["name"])).config, given, f"method {given['name']}")
