"""The fields of a config with their defaults, as a user would write them: for `--help` and the docs."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

REQUIRED = "(required)"


def defaults_of(config: type[BaseModel]) -> dict[str, str]:
    """{field: its default as YAML would have it}, in order; without the `name` that a method is picked by."""
    return {
        field.alias or name: REQUIRED
        if field.is_required()
        else _shown(field.get_default(call_default_factory=True))
        for name, field in config.model_fields.items()
        if not (name == "name" and "recommended_lr" in vars(config))
    }


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel) or (
        isinstance(value, tuple) and any(isinstance(v, BaseModel) for v in value)
    ):
        return "its defaults"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.1f}" if value == int(value) else f"{value:g}"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return json.dumps(value)


def method_help(name: str) -> str:
    """What `posttrain train NAME --help` adds: the fields of the method, and of `online` where it samples.

    "" for a name that is no method.
    """
    from posttrain.cli.verbs import EXAMPLES
    from posttrain.common.errors import ConfigError
    from posttrain.training.methods import method_named
    from posttrain.training.online_config import OnlineConfig

    try:
        method = method_named(name)
    except ConfigError:
        return ""
    config = method.config
    lines = [f"Fields of {name}, with their defaults (--set method.FIELD=…):", *_listed(config)]
    if method.advantages is not None:
        lines += ["", "Fields of online (--set online.FIELD=…):", *_listed(OnlineConfig)]
        lines += ["", f"Example: {EXAMPLES['train grpo'].replace('train grpo', f'train {name}')}"]
    lines += ["", f"The learning rate where optimizer.lr is not set: {config.recommended_lr:g}."]
    return "\n".join(lines)


def _listed(config: type[BaseModel]) -> list[str]:
    return [f"  {field:<20} {default}" for field, default in defaults_of(config).items()]
