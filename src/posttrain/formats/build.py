"""What readers build: records with an id, a source and a licence, from text that was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from posttrain.common.config import Config
from posttrain.formats.fields import whole
from posttrain.formats.rejects import RowError
from posttrain.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Provenance,
    Rating,
    Response,
    check_turns,
    row_id,
)

T = TypeVar("T")


class ReadOptions(Config):
    """How other people's formats are read.

    licence: of every row, where the row does not say its own.
    calculator: keep GSM8K's annotations (`<<48/2=24>>`) in the responses.
    pairs: which comparisons a list of ranked or scored responses gives.
    aspect: what scored responses are compared by: an aspect, or "mean" over all; empty: "overall" where it
        is given, else "mean".
    paths: an OASST tree gives a demonstration for the last reply of each path ("leaves") or for every reply.
    unreviewed: use OASST messages whose review failed or never came.
    separator: what stands between two documents of a .txt file; None: the file is one document.
    """

    licence: str = ""
    calculator: bool = False
    pairs: Literal["best-vs-each", "best-vs-worst", "all"] = "best-vs-each"
    aspect: str = ""
    paths: Literal["leaves", "replies"] = "leaves"
    unreviewed: bool = False
    separator: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row stands, and how it is to be read."""

    file: str
    line: int
    options: ReadOptions
    licence: str = ""

    @property
    def source(self) -> str:
        """File name and line, without the folder: the same file gives the same rows everywhere."""
        return f"{Path(self.file).name}:{self.line}"

    def provenance(self, id: str, makers: Mapping[str, str] | None = None) -> Provenance:
        return Provenance(id=id, source=self.source, licence=self.licence, makers=dict(makers or {}))


def attempt(make: Callable[[], T]) -> T | RowError:
    """One of several rows of a line: what is wrong with it must not cost the others."""
    try:
        return make()
    except RowError as e:
        return e


def user(content: str) -> Message:
    return Message(role="user", content=content)


def prompt(
    messages: Sequence[Message],
    origin: Origin,
    *,
    reference: str | None = None,
    tags: Mapping[str, str] | None = None,
    field: str = "prompt",
) -> Prompt:
    """A prompt whose id is its content. Raises RowError naming `field` for turns out of order."""
    asked = tuple(messages)
    try:
        check_turns(asked)
    except ValueError as e:
        raise RowError(field, str(e)) from None
    if asked[-1].role != "user":
        raise RowError(field, f"no user turn at the end: the last turn is '{asked[-1].role}'")
    provenance = origin.provenance(row_id("prompt", _plain(asked), reference))
    return Prompt(provenance=provenance, messages=asked, reference=reference, tags=dict(tags or {}))


def response(value: Any, field: str) -> Response:
    """A response written by somebody. Raises RowError where it is no text or nothing is left of it."""
    words = whole(value, field)
    if not words.strip():
        raise RowError(field, "an empty response")
    return Response(text=words)


def demonstration(
    asked: Prompt, answer: Response, origin: Origin, makers: Mapping[str, str] | None = None
) -> Demonstration:
    provenance = origin.provenance(row_id("demonstration", _plain(asked.messages), answer.text), makers)
    return Demonstration(provenance=provenance, prompt=asked, response=answer)


def comparison(
    asked: Prompt,
    chosen: Response,
    rejected: Response,
    origin: Origin,
    *,
    makers: Mapping[str, str] | None = None,
    strength: float | None = None,
    aspect: str = "overall",
    judge: str = "",
) -> Comparison:
    """Raises RowError where the two are the same."""
    if chosen.text == rejected.text:
        raise RowError("chosen", "chosen and rejected are the same")
    id = row_id("comparison", _plain(asked.messages), chosen.text, rejected.text, aspect, judge)
    return Comparison(
        provenance=origin.provenance(id, makers),
        prompt=asked,
        chosen=chosen,
        rejected=rejected,
        strength=strength,
        aspect=aspect,
        judge=judge,
    )


def rating(
    asked: Prompt,
    answer: Response,
    origin: Origin,
    *,
    scores: Mapping[str, float | None] | None = None,
    label: bool | None = None,
    makers: Mapping[str, str] | None = None,
    judge: str = "",
) -> Rating:
    id = row_id("rating", _plain(asked.messages), answer.text, dict(scores or {}), label, judge)
    return Rating(
        provenance=origin.provenance(id, makers),
        prompt=asked,
        response=answer,
        scores=dict(scores or {}),
        label=label,
        judge=judge,
    )


def _plain(messages: Sequence[Message]) -> list[Any]:
    return [message.model_dump() for message in messages]
