"""A conversation with a model: its turns, and answers that arrive piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from posttrain.engines.protocol import SamplingParams
from posttrain.records import Message

if TYPE_CHECKING:
    from posttrain.models.template import ChatTemplate

_HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Streamer(Protocol):
    """An engine that can answer token by token, as `LocalEngine` does."""

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]: ...


class Conversation:
    """Turns so far, and how the next answer is drawn; each answer has a seed of its own.

    cut_off: the last answer ended for want of tokens. Every method that takes text raises ValueError for text
    that is no turn (empty, damaged).
    """

    def __init__(
        self, engine: Streamer, template: ChatTemplate, params: SamplingParams, system: str | None = None
    ) -> None:
        self.engine = engine
        self.template = template
        self.params = params
        self.turns: list[Message] = []
        self.cut_off = False
        self._answers = 0
        self._system: list[Message] = []
        if system is not None:
            self.set_system(system)

    def set_system(self, text: str) -> None:
        """Begin anew under this system turn; none where the text is empty."""
        self._system = [Message(role="system", content=text)] if text.strip() else []
        self.reset()

    def reset(self) -> None:
        """Forget every turn but the system's."""
        self.turns = []

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer to `text` in pieces. What was said is remembered, halfway or whole.

        A question without an answer is forgotten. Raises ConfigError where the conversation leaves no room.
        """
        return self._answer([*self.turns, Message(role="user", content=text)])

    def again(self) -> Generator[str]:
        """Yield another answer to the last question. Raises ValueError where there is none."""
        if not self.turns:
            raise ValueError("nothing has been asked yet")
        return self._answer(self.turns[:-1])

    def _answer(self, asked: list[Message]) -> Generator[str]:
        params = self.params.model_copy(update={"seed": self.params.seed + self._answers})
        self._answers += 1
        prompt = self.template.prompt([*self._system, *asked])
        said: list[int] = []
        self.turns = asked[:-1]

        def tokens() -> Iterator[int]:
            for token in self.engine.stream(prompt, params):
                said.append(token)
                yield token

        try:
            yield from pieces(tokens(), self.template.decode)
        finally:
            text = self.template.decode(said)
            self.cut_off = len(said) > 0 and said[-1] not in self.template.stop_ids
            if text.strip():
                # Not validated: a model may say half a character, a person's turn may not hold one.
                self.turns = [*asked, Message.model_construct(role="assistant", content=text)]


def pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Text as it becomes whole: characters that span tokens are held back until their last byte is there."""
    said: list[int] = []
    shown = 0
    text = ""
    for token in tokens:
        said.append(token)
        text = decode(said)
        whole = text.rstrip(_HALF)
        if len(whole) > shown:
            yield whole[shown:]
            shown = len(whole)
    if len(text) > shown:
        yield text[shown:]
