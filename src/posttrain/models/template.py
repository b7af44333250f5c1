"""Messages to tokens and back: the only place that applies chat templates.

A conversation is cut where the model starts to write and where it stops. Each part is tokenised on its own,
so the prompt that was sampled from and the prompt that is trained on are the same ids, and no boundary is
ever looked for in tokens that were merged across it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from posttrain.common.config import nearest
from posttrain.common.errors import ConfigError, DataError
from posttrain.models.default_templates import (
    CHATML_TOKENS,
    NAMED,
    adds_bos,
    default_name,
    named_template,
)
from posttrain.models.encoding import Piece, TextEncoder
from posttrain.records import ImagePart, Message, Prompt, Response

logger = logging.getLogger(__name__)

Turns = Literal["last", "all"]
# Templates that write the date would give other ids every day.
_FIXED_DATE = "26 Jul 2024"
_PROBE_USER, _PROBE_ASSISTANT = "ping", "pong"


@dataclass(frozen=True)
class Encoded:
    """A sequence and what is learned of it.

    tokens: ids. mask: True where the token is supervised (what the assistant writes and the token that ends
    it).
    """

    tokens: list[int]
    mask: list[bool]


class ChatTemplate:
    """A tokenizer's chat template.

    override: a named template ("chatml", "plain"), a file, or a template's own text. Without one the
    tokenizer's is used, and where it has none a default with one warning; both become the tokenizer's own.
    stop_ids: further tokens that end a response (a model's generation config names them).

    Attributes:
        stop_ids: every token that ends a response; the one the template writes comes first.
        written_stop: the id of the stop token that the template writes after an assistant turn, or None; then
            `stop_ids[0]` is put after a response all the same.
        adds_bos: the tokenizer puts a BOS token before plain texts.
        opening, ending: the text the template writes before and after the words of a last assistant turn.

    Raises ConfigError for a template that cannot be found or does not compile.
    """

    def __init__(self, tokenizer: Any, override: str | None = None, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.text = _choose(tokenizer, override)
        if override is not None or tokenizer.chat_template is None:
            tokenizer.chat_template = self.text
        self._encoder = TextEncoder(tokenizer)
        self._rendered = lru_cache(maxsize=4096)(self._render)
        self.opening, self.ending = self._probe()
        self.written_stop = self._find_stop()
        known = [self.written_stop, tokenizer.eos_token_id, *stop_ids]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in known if i is not None))
        stops = [tokenizer.convert_ids_to_tokens(i) for i in self.stop_ids]
        self._encoder = TextEncoder(tokenizer, extra=stops)
        self._rendered.cache_clear()
        self._put_first = self._spell(self._encoder.encode([Piece(self.opening, inner=True)])[0])
        self.adds_bos = adds_bos(tokenizer)

    # Rendering

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The text of a conversation; generation: with what opens the next assistant turn at its end."""
        return self._encoder.unmark(self._rendered(tuple(messages), generation))

    def _render(self, messages: tuple[Message, ...], generation: bool) -> str:
        """The rendering with control tokens inside the messages marked."""
        import jinja2

        chat = [{"role": m.role, "content": self._encoder.mark(_text_only(m))} for m in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                chat,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
                date_string=_FIXED_DATE,
            )
        except (jinja2.TemplateError, TypeError) as e:
            roles = ", ".join(m.role for m in messages)
            raise DataError(f"the chat template refuses a conversation of turns [{roles}]: {e}") from e
        return text

    # Encoding

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt; they end with what opens the assistant's turn."""
        return self.prompts([messages])[0]

    def prompts(self, many: Sequence[Sequence[Message]]) -> list[list[int]]:
        """`prompt` for many at once, which is faster."""
        chains = [self._chain(tuple(messages)) for messages in many]
        parts = iter(self._encoder.encode([piece for chain in chains for piece in chain]))
        return [[token for _ in chain for token in next(parts)] for chain in chains]

    def response(self, messages: Sequence[Message], response: Response) -> list[int]:
        """Ids of a response to `messages`: as sampled where known, else as the template writes the text.

        Written text ends with a stop token; sampled ids are never touched, cut off ones included.
        """
        return self.responses([(messages, response)])[0]

    def responses(self, many: Sequence[tuple[Sequence[Message], Response]]) -> list[list[int]]:
        """`response` for many at once, which is faster."""
        written = [(tuple(m), r.text) for m, r in many if r.token_ids is None]
        pieces = [Piece(self._tail(messages, text), inner=True) for messages, text in written]
        ids = iter([self._end(tokens) for tokens in self._encoder.encode(pieces)])
        return [next(ids) if r.token_ids is None else list(r.token_ids) for _, r in many]

    def conversation(self, prompt: Prompt, response: Response, turns: Turns = "last") -> Encoded:
        """A prompt with its response. turns: which assistant turns are supervised, the response alone or all.

        Raises DataError where earlier turns are to be supervised and the template rewrites them as a
        conversation goes on, so that what the assistant wrote cannot be told apart.
        """
        return self.conversations([(prompt, response)], turns)[0]

    def conversations(self, rows: Sequence[tuple[Prompt, Response]], turns: Turns = "last") -> list[Encoded]:
        """`conversation` for many at once, which is faster."""
        responses = self.responses([(prompt.messages, response) for prompt, response in rows])
        chains = [self._chain(prompt.messages) for prompt, _ in rows]
        parts = iter(self._encoder.encode([piece for chain in chains for piece in chain]))
        encoded = []
        for (prompt, _), chain, ids in zip(rows, chains, responses, strict=True):
            segments = [next(parts) for _ in chain]
            if turns == "all":
                mask = self._earlier_turns(prompt, segments)
            else:
                mask = [False] * sum(map(len, segments))
            tokens = [token for segment in segments for token in segment]
            encoded.append(Encoded(tokens + ids, mask + [True] * len(ids)))
        return encoded

    def documents(self, texts: Sequence[str]) -> list[Encoded]:
        """Plain texts to pretrain on, each closed by the end-of-text token; all but a BOS is supervised."""
        head = [self.tokenizer.bos_token_id] if self.adds_bos else []
        eos = self.tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        bodies = self._encoder.encode([Piece(self._encoder.mark(text), inner=bool(head)) for text in texts])
        return [
            Encoded(head + body + end, [False] * len(head) + [True] * (len(body) + len(end)))
            for body in bodies
        ]

    def encode_whole(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a whole conversation tokenised in one go, as other software would."""
        return self._encoder.encode([Piece(self._render(tuple(messages), False))])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of a response: no special or stop tokens, nor what the template itself puts first.

        The words of a response that is still being written only ever grow.
        """
        text = self._spell([i for i in ids if i not in self.stop_ids])
        return "" if self._put_first.startswith(text) else text.removeprefix(self._put_first)

    def _spell(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def control_tokens(self, text: str) -> list[str]:
        """Control tokens that stand in a text as data; they are spelled out when it is encoded."""
        return self._encoder.find_control(text)

    # Parts

    def _chain(self, messages: tuple[Message, ...]) -> list[Piece]:
        """The prompt's rendering, cut wherever the assistant starts to write.

        Piece k > 0 begins with the words of an earlier assistant turn. Where the template rewrites what came
        before, so that a shorter prompt is no prefix of a longer one, the cut is left out.
        """
        whole = self._rendered(messages, True)
        starts = [i for i, message in enumerate(messages) if message.role == "assistant"]
        cuts = [0]
        for i in starts:
            before = self._rendered(messages[:i], True)
            if whole.startswith(before) and len(before) > cuts[-1]:
                cuts.append(len(before))
        bounds = [*cuts[1:], len(whole)]
        return [Piece(whole[a:b], inner=a > 0) for a, b in zip(cuts, bounds, strict=True)]

    def _tail(self, messages: tuple[Message, ...], text: str) -> str:
        """What follows the prompt when the assistant answers `text`, up to the stop token at least."""
        # Not validated again: the text comes out of a validated row, and the check reads every character.
        answer = Message.model_construct(role="assistant", content=text)
        before, whole = self._rendered(messages, True), self._render((*messages, answer), False)
        tail = whole[len(before) :] if whole.startswith(before) else self._encoder.mark(text)
        return tail.removesuffix(self.ending) if self.written_stop is None else tail

    def _end(self, ids: list[int]) -> list[int]:
        """Cut a rendered tail after its stop token, or give it one."""
        for i, token in enumerate(ids):
            if token in self.stop_ids:
                return ids[: i + 1]
        return [*ids, *self.stop_ids[:1]]

    def _earlier_turns(self, prompt: Prompt, segments: Sequence[Sequence[int]]) -> list[bool]:
        """The mask over a prompt in which every earlier assistant turn is supervised up to its stop token."""
        earlier = sum(message.role == "assistant" for message in prompt.messages)
        name = prompt.provenance.id
        if len(segments) - 1 != earlier:
            raise DataError(
                f"row {name}: the chat template rewrites earlier turns as the conversation goes on, so they "
                "cannot be supervised; train on the last turn (turns: last) or give another chat_template"
            )
        mask = [False] * len(segments[0])
        for segment in segments[1:]:
            stops = [i for i, token in enumerate(segment) if token in self.stop_ids]
            if not stops:
                raise DataError(
                    f"row {name}: the chat template writes no stop token after an earlier assistant turn, so "
                    "its end cannot be learned; train on the last turn (turns: last) or give another "
                    "chat_template"
                )
            mask += [i <= stops[0] for i in range(len(segment))]
        return mask

    # What the template does, found out by trying

    def _probe(self) -> tuple[str, str]:
        asked = (Message(role="user", content=_PROBE_USER),)
        answered = (*asked, Message(role="assistant", content=_PROBE_ASSISTANT))
        try:
            before, whole = self._rendered(asked, True), self._rendered(answered, False)
        except DataError as e:
            raise ConfigError(f"this chat template cannot render one question and one answer: {e}") from e
        head, found, ending = whole.rpartition(_PROBE_ASSISTANT)
        if not found:
            raise ConfigError("this chat template leaves out what the assistant says")
        return (head[len(before) :] if head.startswith(before) else ""), ending

    def _find_stop(self) -> int | None:
        """The token, one of those added to the vocabulary, that the template writes right after the words."""
        added = set(self.tokenizer.added_tokens_decoder)
        ids = self._encoder.encode([Piece(self.ending, inner=True)])[0]
        for i, token in enumerate(ids):
            if token in added and self.tokenizer.convert_ids_to_tokens(token).strip():
                return token if not self.tokenizer.decode(ids[:i]).strip() else None
        return None


def _choose(tokenizer: Any, override: str | None) -> str:
    if override is None:
        if tokenizer.chat_template is not None:
            found: str = tokenizer.get_chat_template()
            return found
        name = default_name(tokenizer)
        logger.warning(
            "the tokenizer has no chat template: using posttrain's '%s' (set chat_template to use another)",
            name,
        )
        return named_template(name, tokenizer)
    if override in NAMED:
        if override == "chatml" and default_name(tokenizer) != "chatml":
            raise ConfigError(
                f"chat_template 'chatml' needs the tokens {' and '.join(CHATML_TOKENS)}, which this "
                "vocabulary lacks: use 'plain', which spells its markers with ordinary tokens"
            )
        return named_template(override, tokenizer)
    if "{" in override:
        return override
    path = Path(override).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"chat_template '{override}' is neither a file nor a named one ({nearest(override, list(NAMED))})"
        )
    return path.read_text(encoding="utf-8")


def _text_only(message: Message) -> str:
    if not isinstance(message.content, str) and any(isinstance(p, ImagePart) for p in message.content):
        raise DataError("a message holds an image, and this model reads text only")
    return message.text
