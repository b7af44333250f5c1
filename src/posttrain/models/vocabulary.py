"""Do tokenizer and embeddings belong together; and the one case in which tokens are added."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from posttrain.common.errors import ConfigError
from posttrain.models.default_templates import CHATML_TOKENS, default_name
from posttrain.models.spec import ModelSpec

if TYPE_CHECKING:
    from posttrain.models.load import Model

logger = logging.getLogger(__name__)


def check_vocabulary(hf: PreTrainedModel, tokenizer: Any, source: str) -> None:
    """Raise ConfigError where the tokenizer has tokens that the model has no embedding for."""
    embeddings: Any = hf.get_input_embeddings()
    rows = embeddings.num_embeddings
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows]
    if beyond:
        shown = ", ".join(repr(token) for token in beyond[:5])
        raise ConfigError(
            f"{source}: the tokenizer has {len(beyond)} tokens beyond the model's {rows} embeddings "
            f"({shown}): it belongs to another model"
        )


def same_vocabulary(policy: Model, other: Model, where: str) -> None:
    """Raise ConfigError where a model that is to read the policy's tokens numbers its own otherwise.

    where: the field that names the other model.
    """
    mine, its = policy.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if mine != its:
        apart = len(mine.items() ^ its.items())
        raise ConfigError(
            f"{where}: {other.source} has {len(its)} tokens and {policy.source} {len(mine)}, {apart} of them "
            "not the same: a token of one is none of the other's"
        )


def add_chat_tokens(spec: ModelSpec, hf: PreTrainedModel, tokenizer: Any, train: bool) -> tuple[str, ...]:
    """Give the vocabulary ChatML's two tokens where "chatml" was asked for by name and they can be trained.

    Never for inference: an embedding that nobody trained says nothing. Returns the tokens that were added.
    Raises ConfigError under LoRA, which does not train embeddings.
    """
    if spec.chat_template != "chatml" or default_name(tokenizer) == "chatml" or not train:
        return ()
    if spec.lora is not None:
        raise ConfigError(
            f"chat_template 'chatml' would need new embeddings for {' and '.join(CHATML_TOKENS)}, which LoRA "
            "does not train: use 'plain', or train all weights"
        )
    new = tuple(token for token in CHATML_TOKENS if token not in tokenizer.get_vocab())
    tokenizer.add_tokens(list(new), special_tokens=True)
    _grow_embeddings(hf, tokenizer, new, spec.vocab_multiple)
    logger.warning("added %s to the vocabulary; their embeddings start as the mean of all", " and ".join(new))
    return new


def _grow_embeddings(hf: PreTrainedModel, tokenizer: Any, new: tuple[str, ...], multiple: int) -> None:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in new]
    embeddings: Any = hf.get_input_embeddings()
    old = embeddings.num_embeddings
    if max(ids) >= old:
        hf.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
    layers: list[Any] = [hf.get_input_embeddings(), hf.get_output_embeddings()]
    with torch.no_grad():
        for layer in layers:
            if layer is not None:
                fresh = sorted({*ids, *range(old, len(layer.weight))})
                layer.weight[fresh] = layer.weight[: min(old, *ids)].mean(0)
