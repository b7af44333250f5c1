"""Which tokens end and which one pads: settled once when a model is loaded, so that the saved is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from posttrain.models.template import ChatTemplate

_PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|endoftext|>")


def settle_special_tokens(hf: PreTrainedModel, tokenizer: Any, template: ChatTemplate) -> None:
    """Make tokenizer, config and generation config agree: every stop token ends a generation.

    Nothing is padded in training here. But a folder whose padding token ends its responses makes plain
    transformers score a response before its end, and other trainers leave the end out of the loss.
    """
    pad = padding_token(tokenizer, template.stop_ids)
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    stops = list(template.stop_ids)
    for config in (hf.config.get_text_config(), hf.config, hf.generation_config):
        if config is not None:
            config.pad_token_id = pad
    if hf.generation_config is not None:
        hf.generation_config._from_model_config = False  # what stands there now counts as said on purpose
        hf.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops or None


def padding_token(tokenizer: Any, stop_ids: tuple[int, ...]) -> int | None:
    """A token that ends no written response: the tokenizer's pad, one by a usual name, unk or bos; else none.

    Without one, plain transformers refuses to score more than one row at once, which is better than scoring
    wrongly.
    """
    vocabulary = tokenizer.get_vocab()
    named = [vocabulary.get(name) for name in _PAD_NAMES]
    candidates = [tokenizer.pad_token_id, *named, tokenizer.unk_token_id, tokenizer.bos_token_id]
    return next((token for token in candidates if token is not None and token not in stop_ids[:1]), None)
