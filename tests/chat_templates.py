"""Chat templates in the styles met in the wild, and tokenizers that fit them."""
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass

from tiny import END, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# The system turn is put into the last user turn, so a prompt is no prefix of the next one.
MISTRAL_SYSTEM_LAST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in turns %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if system "
    "and loop.index0 == ns.last else '') + m['content'] + '[/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = messages[0]['content'] + "
    "'\n\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}"
    "{%- set role = message['role'] -%}{%- endif -%}{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if "
    "loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
# A last turn without thinking gets an empty thought; thoughts of earlier turns are cut out.
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set words = m.content.split('</think>')[-1]"
    ".lstrip('\n') %}{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if "
    "'</think>' in m.content else '' %}{{- '<|im_start|>assistant\n' }}{%- if loop.last %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- words + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PHI3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GENERATION_TAGS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + "
    "m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What opens the assistant's turn is not what stands there afterwards.
NOT_PREFIX = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>bot\n' }}{% endif %}"
)
NO_STOP = (
    "{% for m in messages %}{{ m.role|upper + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
UNKNOWN_STOP = (
    "{% for m in messages %}{{ '<turn>' + m.role + '\n' + m.content + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """A template with what its tokenizer needs. stop: the token that ends a turn. system: it takes a system turn."""

    text: str
    specials: tuple[str, ...]
    stop: str
    eos: str
    bos: str | None = None
    pad: str | None = None
    system: bool = True

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tiny_tokenizer(
            chat_template=self.text, specials=self.specials, eos=self.eos, bos=self.bos, pad=self.pad
        )


_IM = (END, "<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
STYLES = {
    "chatml": Style(CHATML, _IM, "<|im_end|>", "<|im_end|>", pad=END),
    "chatml, eos is another": Style(CHATML, _IM, "<|im_end|>", END, pad=END),
    "llama3": Style(LLAMA3, _LLAMA, "<|eot_id|>", "<|end_of_text|>", bos="<|begin_of_text|>"),
    "mistral": Style(MISTRAL, ("<unk>", "<s>", "</s>"), "</s>", "</s>", bos="<s>", system=False),
    "gemma": Style(
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<eos>",
        bos="<bos>",
        pad="<pad>",
    ),
    "zephyr": Style(ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>", "</s>", bos="<s>", pad="</s>"),
    "qwen3": Style(QWEN3, _IM, "<|im_end|>", "<|im_end|>", pad=END),
    "phi3": Style(PHI3, (END, "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|end|>", END, pad=END),
    "generation tags": Style(GENERATION_TAGS, _IM, "<|im_end|>", "<|im_end|>", pad=END),
}
SYSTEM_LAST = Style(MISTRAL_SYSTEM_LAST, ("<unk>", "<s>", "</s>"), "</s>", "</s>", bos="<s>")
