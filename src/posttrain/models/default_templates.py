"""Chat templates for models that come without one."""

from __future__ import annotations

from typing import Any

# Both end an assistant turn with exactly one token, and write it into the history too, so that what a model
# sees of its own earlier turns is what it wrote.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

# The same layout for any vocabulary: the markers are spelled with ordinary tokens (as Tülu does), so that no
# embedding has to be added, and a turn ends with the tokenizer's own end-of-text token.
PLAIN = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

NAMED = {"chatml": CHATML, "plain": PLAIN}


def default_name(tokenizer: Any) -> str:
    """The named template that needs nothing this vocabulary lacks: "chatml", else "plain"."""
    vocabulary = tokenizer.get_vocab()
    return "chatml" if all(token in vocabulary for token in CHATML_TOKENS) else "plain"


def named_template(name: str, tokenizer: Any) -> str:
    """A named template's text; it opens with the BOS token where the tokenizer puts one before every text."""
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + NAMED[name]


def adds_bos(tokenizer: Any) -> bool:
    """Does this tokenizer put its BOS token before a text that is encoded with special tokens?"""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
