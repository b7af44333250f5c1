"""Records to TRL's dataset types, standard (text) or conversational (lists of turns)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.common.errors import DataError
from posttrain.common.files import atomic
from posttrain.formats.convert import plural
from posttrain.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Rating,
    Response,
    Row,
    TextPart,
)

Style = Literal["conversational", "standard"]
Type = Literal["language-modeling", "prompt-only", "prompt-completion", "preference", "unpaired-preference"]


def to_trl(row: Row, style: Style = "conversational", type: Type | None = None) -> dict[str, Any]:
    """A record as a row of a TRL dataset.

    type: one of TRL's dataset types; None: the one of the record's kind (a demonstration: prompt-completion).
        A demonstration can also be written as language-modeling ({"messages"}); nothing else has two types.
    The reference and the tags of the prompt become columns, a comparison's strength the column `margin`.
    Standard style holds prompts of one user turn of text only.
    Raises DataError where the row does not fit.
    """
    wanted = type or TYPES.get(row.__class__)
    write = WRITERS.get((row.__class__, wanted))
    if write is None:
        kinds = ", ".join(plural(kind) for kind, known in WRITERS if known == wanted)
        raise DataError(
            f"row {row.provenance.id}: {plural(row.__class__)} are not written as '{wanted}', {kinds} are"
        )
    return write(row, style)


def write_trl(
    path: Path | str, rows: Iterable[Row], style: Style = "conversational", type: Type | None = None
) -> int:
    """Write records as JSON lines that `datasets` loads and TRL's trainers take; returns their number."""
    written = 0
    with atomic(Path(path)) as f:
        for row in rows:
            f.write(json.dumps(to_trl(row, style, type), ensure_ascii=False) + "\n")
            written += 1
    return written


def _document(row: Document, style: Style) -> dict[str, Any]:
    return {"text": row.text}


def _messages(row: Demonstration, style: Style) -> dict[str, Any]:
    if style == "standard":
        raise DataError(
            f"row {row.provenance.id}: a conversation has no standard language-modeling form "
            "without a template; write it as prompt-completion, or conversational"
        )
    turns = [*_turns(row.prompt), {"role": "assistant", "content": row.response.text}]
    return {"messages": turns, **_beside(row.prompt, ("messages",))}


def _prompt(row: Prompt, style: Style) -> dict[str, Any]:
    return _asked(row, style, ())


def _completion(row: Demonstration, style: Style) -> dict[str, Any]:
    return {**_asked(row.prompt, style, ("completion",)), "completion": _said(row.response, style)}


def _preference(row: Comparison, style: Style) -> dict[str, Any]:
    if row.prompt_token_ids is not None:
        raise DataError(f"row {row.provenance.id}: token-exact, which a preference of texts cannot hold")
    margin = {} if row.strength is None else {"margin": row.strength}
    used = ("chosen", "rejected", *margin)
    sides = {"chosen": _said(row.chosen, style), "rejected": _said(row.rejected, style)}
    return {**_asked(row.prompt, style, used), **sides, **margin}


def _unpaired(row: Rating, style: Style) -> dict[str, Any]:
    if row.label is None:
        raise DataError(
            f"row {row.provenance.id}: a rating without a label; TRL's unpaired preference needs one"
        )
    asked = _asked(row.prompt, style, ("completion", "label"))
    return {**asked, "completion": _said(row.response, style), "label": row.label}


def _asked(prompt: Prompt, style: Style, used: tuple[str, ...]) -> dict[str, Any]:
    if style == "conversational":
        return {"prompt": _turns(prompt), **_beside(prompt, ("prompt", *used))}
    only = prompt.messages[0]
    if len(prompt.messages) > 1 or not isinstance(only.content, str):
        raise DataError(
            f"row {prompt.provenance.id}: standard style holds one user turn of text, this prompt has "
            f"{len(prompt.messages)} turns; write it conversational"
        )
    return {"prompt": only.content, **_beside(prompt, ("prompt", *used))}


def _beside(prompt: Prompt, used: tuple[str, ...]) -> dict[str, Any]:
    """The reference and the tags as columns. Raises DataError for a tag that would not come back as one."""
    columns: dict[str, Any] = {
        **prompt.tags,
        **({} if prompt.reference is None else {"reference": prompt.reference}),
    }
    if "references" in columns:
        columns["references"] = json.loads(columns["references"])
    clash = [name for name in columns if name in used or (name == "reference" and name in prompt.tags)]
    if clash:
        raise DataError(f"row {prompt.provenance.id}: a tag is called '{clash[0]}', as a column of TRL's is")
    return columns


def _turns(prompt: Prompt) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": _content(message)} for message in prompt.messages]


def _content(message: Message) -> Any:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "image": part.image}
        for part in message.content
    ]


def _said(response: Response, style: Style) -> Any:
    return response.text if style == "standard" else [{"role": "assistant", "content": response.text}]


TYPES: Mapping[type[Row], Type] = {
    Document: "language-modeling",
    Prompt: "prompt-only",
    Demonstration: "prompt-completion",
    Comparison: "preference",
    Rating: "unpaired-preference",
}
WRITERS: Mapping[tuple[type[Row], str | None], Callable[[Any, Style], dict[str, Any]]] = {
    (Document, "language-modeling"): _document,
    (Demonstration, "language-modeling"): _messages,
    (Prompt, "prompt-only"): _prompt,
    (Demonstration, "prompt-completion"): _completion,
    (Comparison, "preference"): _preference,
    (Rating, "unpaired-preference"): _unpaired,
}
