"""Tokenizers from folders: what `tokenizer.json` says is what counts."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from posttrain.common.errors import ConfigError
from posttrain.models.locate import find_tokenizer
from posttrain.models.template import ChatTemplate

logger = logging.getLogger(__name__)

# Where splitting rules differ from one another: digits, contractions, spaces, composed and decomposed
# letters.
_PROBES = (
    "In 1984 it cost 1234567.89, I'd say; they'LL see, DON'T they?",
    "  two  spaces\tand a tab\n\n\nand newlines \r\n end ",
    "naïve café, nai\u0308ve cafe\u0301, straße, ΑΒΓ",
    "你好，世界。これはテストです 👍🏽 🇨🇭",
    "def f(x):\n    return x**2+1;  // https://example.org/a?b=c#d_e-f",
)


def load_tokenizer(ref: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder, an artifact or a hub model.

    Loaded as plain transformers loads it; where that splits text otherwise than the folder's `tokenizer.json`
    (some architectures have their splitting rule built in), `tokenizer.json` wins and a warning says so.
    Raises ConfigError where there is none, or none that can be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = find_tokenizer(ref, revision, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if not splits_as_written(tokenizer, folder):
            logger.warning(
                "%s splits text otherwise than %s/tokenizer.json: going by tokenizer.json",
                type(tokenizer).__name__,
                folder,
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, TypeError, ImportError, KeyError, StrictDataclassError) as e:
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {e}") from e
    return tokenizer


def load_template(
    ref: str, chat_template: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> ChatTemplate:
    """The chat template of a model or tokenizer, as `load_model` has it, without its weights."""
    folder = find_tokenizer(ref, revision, trust_remote_code)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    return ChatTemplate(tokenizer, chat_template, _generation_ends(folder))


def _generation_ends(folder: Path) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return () if named is None else tuple(named) if isinstance(named, list) else (named,)


def splits_as_written(tokenizer: Any, folder: Path) -> bool:
    """Does the tokenizer give the ids that the folder's `tokenizer.json` gives?"""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return True
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(file))
    written.no_truncation()
    written.no_padding()
    expected = [written.encode(text, add_special_tokens=False).ids for text in _PROBES]
    found = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]
    return expected == found


def tokenizer_hash(tokenizer: Any) -> str:
    """16 hex digits that change when ids mean something else; token-exact rows carry it.

    The vocabulary alone counts: not how text is split, which token is eos, or the chat template.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
