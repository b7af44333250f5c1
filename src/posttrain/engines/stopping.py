"""When an answer is over: stop tokens, and strings that may span tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain.models.load import Model

# Every token adds a byte or more to the text, save the rare one that adds none: room for so many of those.
_SILENT = 8


def stop_ids(model: Model) -> set[int]:
    """Tokens that end an answer: the template's, and every end-of-text token the model and tokenizer name."""
    ids = set(model.template.stop_ids)
    generation = getattr(model.hf, "generation_config", None)
    for named in (model.hf.config.get_text_config().eos_token_id, getattr(generation, "eos_token_id", None)):
        ids.update([named] if isinstance(named, int) else named or [])
    if model.tokenizer.eos_token_id is not None:
        ids.add(model.tokenizer.eos_token_id)
    return ids


class StopStrings:
    """Looks for strings in the decoded ends of token rows; special tokens are looked at as they are spelt."""

    def __init__(self, model: Model, texts: tuple[str, ...]) -> None:
        self.tokenizer = model.tokenizer
        self.texts = texts
        self.tail = max((len(text.encode()) for text in texts), default=0) + _SILENT

    def among(self, rows: list[list[int]]) -> list[bool]:
        """For each row of tokens, whether one of the strings stands in its end."""
        if not self.texts:
            return [False] * len(rows)
        said = self.tokenizer.batch_decode(
            [row[-self.tail :] for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return [any(text in tail for text in self.texts) for tail in said]


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings in it."""
    found = [text.index(s) for s in stop if s in text]
    return text[: min(found)] if found else text
