"""Tiny random Hugging Face models and a small trained tokenizer, made offline with plain transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 384

_TEXT = [
    "The capital of the country is a large city beside the river.",
    "user: Please write a polite email that declines an invitation to dinner.",
    "assistant: Dear Anna, thank you very much for the invitation. I am sorry that I cannot come.",
    "system: You are a helpful assistant who answers in short, whole sentences.",
    "What is 12 + 30? Let us add: 12 + 30 = 42. The answer is 42.",
    "def add(a, b):\n    return a + b\n",
    "<think>\nFirst the tens, then the ones.\n</think>\n\nIt is 7.",
]

# Small enough that a forward takes milliseconds, uneven enough that a mistake in heads, groups or windows
# shows.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
ARCHS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {**_COMMON, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_COMMON, "model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 8},
    "mistral": {**_COMMON, "model_type": "mistral", "tie_word_embeddings": False, "sliding_window": 8},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {**_COMMON, "model_type": "phi3", "tie_word_embeddings": False, "resid_pdrop": 0.0},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "initializer_range": 0.1,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    },
    "olmo2": {**_COMMON, "model_type": "olmo2", "tie_word_embeddings": False},
    "mamba": {
        "model_type": "mamba",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "state_size": 4,
        "num_hidden_layers": 2,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    },
    # convolutions and attention by turns
    "lfm2": {
        **_COMMON,
        "model_type": "lfm2",
        "tie_word_embeddings": True,
        "layer_types": ["conv", "full_attention"],
        "block_multiple_of": 16,
    },
    # attention with linear biases in place of positions
    "bloom": {
        "model_type": "bloom",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    },
}
# What a forest can run through in one forward, and what has to fall back to one row a branch.
FOREST_ARCHS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt2", "olmo2")
FALLBACK_ARCHS = ("mamba", "lfm2", "bloom")


@cache
def _trained(vocab_size: int, specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(
    *,
    chat_template: str | None = None,
    specials: tuple[str, ...] = (END, CHAT_START, CHAT_END),
    eos: str = CHAT_END,
    bos: str | None = None,
    pad: str | None = END,
    vocab_size: int = VOCAB,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` tokens, every byte among them; the first ids are `specials`.

    bos: where given, it is put before every text that is encoded with special tokens, as Llama's does.
    """
    backend = Tokenizer.from_str(_trained(vocab_size, specials))
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        single, pair = f"{bos} $A", f"{bos} $A {bos} $B:1"
        backend.post_processor = TemplateProcessing(
            single=single, pair=pair, special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        bos_token=bos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(arch: str, **overrides: Any) -> Any:
    """The transformers config of a tiny `arch` (a key of ARCHS)."""
    settings = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, **ARCHS[arch], **overrides}
    return AutoConfig.for_model(**settings)


def tiny_model(arch: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 causal LM with random weights, in eval mode. `overrides` go into its config.

    Weights are spread more widely than a fresh model's, biases and norms included, so that wrong wiring
    changes the output visibly.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(arch, **overrides), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_folder(
    arch: str,
    path: str | Path,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Save a tiny model and its tokenizer as a standard Hugging Face folder and return its path."""
    path = Path(path)
    tiny_model(arch, seed, **overrides).to(dtype).save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path
