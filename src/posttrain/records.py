"""The rows that travel along the road. Every row is frozen, carries its provenance, and says its own kind."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, field_validator, model_validator

from posttrain.common.config import Config

Role = Literal["system", "user", "assistant"]


class Record(Config):
    """Base of all rows and their parts."""


class ImagePart(Record):
    """An image inside a message: a path relative to the file that holds the row, or a data: URL."""

    image: str


class TextPart(Record):
    text: str


class Message(Record):
    """One turn. `content` is text, or parts of text and images."""

    role: Role
    content: str | tuple[TextPart | ImagePart, ...]

    @field_validator("content")
    @classmethod
    def _whole(cls, content: Any) -> Any:
        written = [p.text for p in content if isinstance(p, TextPart)] if not isinstance(content, str) else []
        parts = [content] if isinstance(content, str) else written
        for text in parts:
            check_text(text)
        has_image = not isinstance(content, str) and any(isinstance(p, ImagePart) for p in content)
        if not has_image and not "".join(parts).strip():
            raise ValueError("an empty turn")
        return content

    @property
    def text(self) -> str:
        """The words of the turn, images left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


_DAMAGE = re.compile("[\x00\ufffd\ud800-\udfff]")


def check_text(text: str) -> None:
    """Raise ValueError for text that was damaged on its way: NULs, lone surrogates, replacement
    characters.
    """
    found = _DAMAGE.search(text)
    if not found:
        return
    position, char = found.start(), found.group()
    if char == "\x00":
        raise ValueError(f"a NUL character at position {position}")
    if char == "\ufffd":
        raise ValueError(
            f"a U+FFFD replacement character at position {position}: the text was decoded wrongly"
        )
    raise ValueError(f"a lone surrogate (half a character) at position {position}")


class Provenance(Record):
    """Where a row came from.

    id: unique within its data set, stable between runs. source: file or generator with its line number.
    makers: who made each part, e.g. {"response": "sft-3f2a, temperature 1.0", "preference": "annotator-2"}.
    parents: ids of the rows this one was made from.
    """

    id: str
    source: str = ""
    licence: str = ""
    makers: dict[str, str] = Field(default_factory=dict)
    parents: tuple[str, ...] = ()


class Row(Record):
    """Base of the five kinds of rows."""

    provenance: Provenance


class Prompt(Row):
    """Messages that end with a user turn.

    reference: an answer to grade against; where several are right, the first, and all of them as a JSON
    list in tags["references"]. tags: use case, language, harm type, split, anything a task needs.
    """

    kind: Literal["prompt"] = "prompt"
    messages: tuple[Message, ...]
    reference: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @field_validator("tags")
    @classmethod
    def _references(cls, tags: dict[str, str]) -> dict[str, str]:
        if "references" in tags and not _texts(tags["references"]):
            raise ValueError(f"references: expected a JSON list of texts, got {tags['references'][:80]!r}")
        return tags

    @model_validator(mode="after")
    def _turns(self) -> Prompt:
        check_turns(self.messages)
        if self.messages[-1].role != "user":
            raise ValueError(f"a prompt ends with a user turn, this one with '{self.messages[-1].role}'")
        return self

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].text

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer that is right; empty where none is known."""
        if "references" in self.tags:
            return tuple(json.loads(self.tags["references"]))
        return () if self.reference is None else (self.reference,)


def _texts(value: str) -> bool:
    """Whether a text is a JSON list of at least one text, and nothing else."""
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list) and bool(found) and all(isinstance(each, str) for each in found)


def check_turns(messages: tuple[Message, ...]) -> None:
    """Raise ValueError unless the turns are [system,] user, assistant, user, …"""
    if not messages:
        raise ValueError("no turns")
    body = messages[1:] if messages[0].role == "system" else messages
    for i, message in enumerate(body):
        expected = "user" if i % 2 == 0 else "assistant"
        if message.role != expected:
            position = i + len(messages) - len(body) + 1
            raise ValueError(
                f"roles out of order: turn {position} is '{message.role}', expected '{expected}'"
            )


class Response(Record):
    """What somebody answered. Where a model wrote it, `token_ids` are what was sampled and win over the text.

    finish: "stop" (the writer ended it, the stop token is among token_ids), "length" (cut off), None
    (unknown or written by hand).
    logps: natural-log probability of each token under the distribution it was sampled from. model_logps: of
    the same tokens under the model itself, without temperature and filters; None where that is not known, or
    is no other than logps.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    logps: tuple[float, ...] | None = None
    finish: Literal["stop", "length"] | None = None
    model_logps: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Response:
        check_text_or_sampled(self)
        for name in ("logps", "model_logps"):
            found = getattr(self, name)
            if found is not None and len(found) != len(self.token_ids or ()):
                raise ValueError(f"{name} and token_ids differ in length")
        return self


def check_text_or_sampled(response: Response) -> None:
    """Written text must be whole and not empty; a model may say anything, a stop token alone included."""
    if response.token_ids is None:
        check_text(response.text)
        if not response.text.strip():
            raise ValueError("an empty response")
    elif not response.token_ids:
        raise ValueError("a response of no tokens")


class Demonstration(Row):
    """A prompt and the response to imitate."""

    kind: Literal["demonstration"] = "demonstration"
    prompt: Prompt
    response: Response


class Comparison(Row):
    """A prompt, a chosen and a rejected response.

    strength: how much better chosen is, in the judge's own units (>= 0); the reward method's margin.
    probability: the judge's probability that chosen is better, in [0, 1]; a soft label.
    prompt_token_ids: where the pair is token-exact, the ids before the responses (the prompt and any prefix);
    tokenizer: then the hash of the tokenizer they belong to.
    evidence: numbers that the preference rests on, by name.
    """

    kind: Literal["comparison"] = "comparison"
    prompt: Prompt
    chosen: Response
    rejected: Response
    strength: float | None = Field(default=None, ge=0)
    probability: float | None = Field(default=None, ge=0, le=1)
    aspect: str = "overall"
    judge: str = ""
    prompt_token_ids: tuple[int, ...] | None = None
    tokenizer: str | None = None
    evidence: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differ(self) -> Comparison:
        a, b = self.chosen, self.rejected
        if (a.token_ids, a.text) == (b.token_ids, b.text) or (a.token_ids is None and a.text == b.text):
            raise ValueError("chosen and rejected are the same")
        return self


class Rating(Row):
    """A prompt, one response, and a score per aspect or one good/bad label. An aspect without an answer is
    None.
    """

    kind: Literal["rating"] = "rating"
    prompt: Prompt
    response: Response
    scores: dict[str, float | None] = Field(default_factory=dict)
    label: bool | None = None
    judge: str = ""


class Samples(Row):
    """A prompt and the responses one model gave to it: what `sample` writes and `judge` reads."""

    kind: Literal["samples"] = "samples"
    prompt: Prompt
    responses: tuple[Response, ...] = Field(min_length=1)
    model: str = ""


class Document(Row):
    """Plain text to pretrain on."""

    kind: Literal["document"] = "document"
    text: str

    @field_validator("text")
    @classmethod
    def _whole(cls, text: str) -> str:
        check_text(text)
        if not text.strip():
            raise ValueError("an empty document")
        return text


AnyRow = Annotated[
    Prompt | Demonstration | Comparison | Rating | Samples | Document, Field(discriminator="kind")
]
ROW = TypeAdapter[Prompt | Demonstration | Comparison | Rating | Samples | Document](AnyRow)
KINDS: dict[str, type[Row]] = {
    "prompt": Prompt,
    "demonstration": Demonstration,
    "comparison": Comparison,
    "rating": Rating,
    "samples": Samples,
    "document": Document,
}
R = TypeVar("R", bound=Row)


def row_id(*parts: Any) -> str:
    """A stable id from the content of a row: 16 hex digits of sha256 over the parts as JSON."""
    payload = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_key(prompt: Prompt) -> str:
    """The id of what is asked, whatever row it stands in: splits and intervals go by this."""
    return row_id([message.model_dump() for message in prompt.messages])
