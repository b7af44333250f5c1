"""Text to token ids, piece by piece: each is tokenised on its own, so no boundary has to be found again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Private-use characters around a control token that stands in somebody's text. `mark` writes them, `encode`
# reads them.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


@dataclass(frozen=True)
class Piece:
    """A text to be tokenised on its own.

    inner: other tokens stand before it, so it gets no leading space.
    """

    text: str
    inner: bool = False


class TextEncoder:
    """Encodes pieces without adding special tokens.

    Control tokens (the tokenizer's special tokens, and `extra`) become one token only where the template
    wrote them; in marked text, which came with data, they are spelled out, so that no row can end a turn or
    open another.
    """

    def __init__(self, tokenizer: Any, extra: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special} | set(extra)
        longest_first = sorted((re.escape(token) for token in control), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first) or "(?!)")
        self._marked = re.compile(f"{_OPEN}({self._control.pattern}){_CLOSE}")
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._lead, self._lead_ids = self._find_lead()

    def mark(self, text: str) -> str:
        """`text` with each control token in it marked as plain text."""
        return self._control.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)

    def unmark(self, text: str) -> str:
        """`text` as it was before `mark`."""
        return self._marked.sub(r"\1", text)

    def find_control(self, text: str) -> list[str]:
        """The control tokens that stand in a text."""
        return self._control.findall(text)

    def encode(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Token ids of each piece; equal pieces are tokenised once."""
        unique = list(dict.fromkeys(pieces))
        plain = [piece for piece in unique if _OPEN not in piece.text]
        done = dict(zip(plain, self._encode_plain(plain), strict=True))
        for piece in unique:
            if piece not in done:
                done[piece] = self._encode_marked(piece)
        return [list(done[piece]) for piece in pieces]

    def _encode_plain(self, pieces: Sequence[Piece]) -> list[list[int]]:
        leads = [self._lead if piece.inner and piece.text else "" for piece in pieces]
        ids = self._batch([lead + piece.text for lead, piece in zip(leads, pieces, strict=True)])
        for i, lead in enumerate(leads):
            if lead:
                ids[i] = self._without_lead(ids[i], pieces[i].text)
        return ids

    def _encode_marked(self, piece: Piece) -> list[int]:
        """Odd parts of the split are control tokens that have to be spelled out."""
        ids: list[int] = []
        for i, part in enumerate(self._marked.split(piece.text)):
            inner = piece.inner or bool(ids)
            ids += self._spell(part, inner) if i % 2 else self._encode_plain([Piece(part, inner)])[0]
        return ids

    def _spell(self, token: str, inner: bool) -> list[int]:
        lead = self._lead if inner else ""
        ids = self.tokenizer.encode(lead + token, add_special_tokens=False, split_special_tokens=True)
        if self.tokenizer.convert_tokens_to_ids(token) in ids:
            # A control token that is not flagged special survives `split_special_tokens`; cut in two it
            # cannot.
            head, tail = self._encode_plain([Piece(token[:1], inner), Piece(token[1:], True)])
            return head + tail
        return self._without_lead(ids, token) if lead else ids

    def _find_lead(self) -> tuple[str, list[int]]:
        """A newline and its ids where the tokenizer opens a text with a space (SentencePiece), or nothing.

        Encoded after a newline, whose ids are then cut off, a piece gets no such space.
        """
        newline, letter, both = self._batch(["\n", "a", "\na"])
        spaced = newline + letter != both and both[: len(newline)] == newline
        return ("\n", newline) if spaced else ("", [])

    def _without_lead(self, ids: list[int], text: str) -> list[int]:
        n = len(self._lead_ids)
        return ids[n:] if ids[:n] == self._lead_ids else self._batch([text])[0]

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is None:
            return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        # Half the time of the tokenizer's own __call__. It shares this state with whoever else uses the
        # tokenizer.
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()
        return [found.ids for found in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
