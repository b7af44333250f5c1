"""A model with random weights, from the fields of a config, to pretrain from nothing."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError
from posttrain.models.spec import ModelSpec
from posttrain.models.weights import Loaded, trainable_padding


def fresh_model(spec: ModelSpec, tokenizer: Any, dtype: torch.dtype) -> Loaded:
    """Random weights from torch's current seed, drawn in float32 whatever `dtype`.

    `vocab_size` comes from the tokenizer, rounded up, unless the config gives one that is large enough.
    Raises ConfigError for an unknown architecture or field, and for sizes that do not fit one another.
    """
    assert spec.config is not None
    fields = dict(spec.config)
    kind = fields.pop("model_type")
    _check_fields(kind, fields)
    needed = max(tokenizer.get_vocab().values()) + 1
    fields.setdefault("vocab_size", -(-needed // spec.vocab_multiple) * spec.vocab_multiple)
    if fields["vocab_size"] < needed:
        raise ConfigError(
            f"config: vocab_size {fields['vocab_size']} is too small for the tokenizer's {needed} tokens; "
            "leave it out"
        )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(kind, **{**ids, **fields})
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        ZeroDivisionError,
        StrictDataclassError,
    ) as e:
        raise ConfigError(f"config: no causal LM can be made of these fields ({kind}): {e}") from e
    return Loaded(trainable_padding(hf.to(dtype)), dtype)


def _check_fields(kind: str, fields: dict[str, Any]) -> None:
    """Transformers takes any field without a word; a misspelled one would leave its default in force."""
    try:
        default = AutoConfig.for_model(kind)
    except ValueError as e:
        from transformers import CONFIG_MAPPING

        hint = nearest(kind, list(CONFIG_MAPPING.keys()))
        raise ConfigError(f"config: unknown model_type '{kind}': {hint[:200]}") from e
    known = {*default.to_dict(), *vars(default), *getattr(default, "attribute_map", {})}
    known = {name for name in known if not name.startswith("_")}
    for name in fields:
        if name not in known:
            raise ConfigError(f"config: {kind} has no field '{name}': {nearest(name, sorted(known))}")
