"""TRL's dataset types, standard (text) and conversational (lists of turns).

Types and columns as in TRL's documentation, "Dataset formats and types".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.formats.build import Origin, comparison, demonstration, prompt, rating, response, user
from posttrain.formats.fields import Plain, boolean, number, optional, tags, text, whole
from posttrain.formats.messages import is_turns, messages, one_response
from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Demonstration, Document, Message, Prompt, Rating, Row, row_id

PROMPTS = ("prompt", "question", "instruction")
COMPLETIONS = ("completion", "response")
REFERENCES = ("reference", "solution", "ground_truth")
# A row with one of these is no bare prompt: reading it as one would lose what was answered.
ANSWERS = (
    "completion", "completions", "response", "responses", "chosen", "rejected", "answer", "answers", "output",
    "outputs", "label", "labels", "messages", "conversations",
)  # fmt: skip


def is_text(row: Plain) -> bool:
    return isinstance(row.get("text"), str) and "role" not in row


def is_messages(row: Plain) -> bool:
    return is_turns(row.get("messages")) and "chosen" not in row


def is_prompt(row: Plain) -> bool:
    said = row.get("prompt")
    answered = [name for name in ANSWERS if name in row and name != "label"]
    return (isinstance(said, str) or is_turns(said)) and not answered


def is_completion(row: Plain) -> bool:
    return _first(row, PROMPTS) is not None and _first(row, COMPLETIONS) is not None


def is_unpaired(row: Plain) -> bool:
    label = row.get("label")
    return is_completion(row) and (
        isinstance(label, bool) or str(label).lower() in ("true", "false", "0", "1")
    )


def is_preference(row: Plain) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def read_text(row: Plain, origin: Origin) -> Iterator[Row]:
    """{"text"}: a document to pretrain on. Other columns are not kept: a document has no tags."""
    words = text(row, "text")
    yield Document(provenance=origin.provenance(row_id("document", words)), text=words)


def read_messages(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """{"messages"}: the last assistant turn is the response, the turns before it the prompt."""
    *asked, last = messages(row.get("messages"), "messages", origin, ends="assistant")
    if not isinstance(last.content, str):
        raise RowError("messages", "expected an assistant turn of text at the end: it holds an image")
    said = prompt(asked, origin, tags=tags(row, ("messages", "prompt")), field="messages")
    yield demonstration(said, response(last.content, "messages"), origin)


def read_messages_prompt(row: Plain, origin: Origin) -> Iterator[Prompt]:
    """{"messages"}: the turns up to the last user turn."""
    turns = messages(row.get("messages"), "messages", origin)
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    yield prompt(asked, origin, tags=tags(row, ("messages", "prompt")), field="messages")


def read_prompt(row: Plain, origin: Origin) -> Iterator[Prompt]:
    """{"prompt"}; a column `reference`, `solution` or `ground_truth` is its reference."""
    yield asked_in(row, origin, ())


def read_completion(row: Plain, origin: Origin) -> Iterator[Demonstration]:
    """{"prompt", "completion"}"""
    asked = asked_in(row, origin, COMPLETIONS)
    yield demonstration(asked, _answer(row, _first(row, COMPLETIONS) or COMPLETIONS[0], origin), origin)


def read_unpaired(row: Plain, origin: Origin) -> Iterator[Rating]:
    """{"prompt", "completion", "label"}"""
    asked = asked_in(row, origin, (*COMPLETIONS, "label"))
    answer = _answer(row, _first(row, COMPLETIONS) or COMPLETIONS[0], origin)
    yield rating(asked, answer, origin, label=boolean(row.get("label"), "label"))


def read_preference(row: Plain, origin: Origin) -> Iterator[Comparison]:
    """{"prompt", "chosen", "rejected"}, or without a prompt where the two begin with it."""
    used = ("chosen", "rejected", "messages", "margin", "score_chosen", "score_rejected")
    lists = [isinstance(row.get(name), list) for name in ("chosen", "rejected")]
    if lists[0] != lists[1]:
        raise RowError(
            "rejected", "chosen and rejected are not of one sort: one is text, one a list of turns"
        )
    explicit = _first(row, PROMPTS)
    if all(lists) and (explicit is None or len(row["chosen"]) > 1):
        asked, chosen, rejected = _shared_turns(row, origin, used, explicit)
    elif explicit is None:
        asked, chosen, rejected = _shared_text(row, origin, used)
    else:
        asked = asked_in(row, origin, used)
        chosen, rejected = (_said(row, name, origin) for name in ("chosen", "rejected"))
    yield comparison(
        asked, response(chosen, "chosen"), response(rejected, "rejected"), origin, strength=_strength(row)
    )


def asked_in(row: Plain, origin: Origin, used: tuple[str, ...]) -> Prompt:
    """The prompt of a row: text (one user turn, after `system` where given) or a list of turns."""
    name = _first(row, PROMPTS) or "prompt"
    known = next((field for field in REFERENCES if isinstance(row.get(field), str)), None)
    left = tags(row, (*used, name, "system", *([known] if known else [])))
    turns = row.get(name)
    asked = messages(turns, name, origin) if is_turns(turns) else (user(text(row, name)),)
    system = optional(row, "system")
    if system.strip() and asked[0].role != "system":
        asked = (Message(role="system", content=system), *asked)
    reference = text(row, known) if known else None
    return prompt(asked, origin, reference=reference, tags=left, field=name)


def _first(row: Plain, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _said(row: Plain, name: str, origin: Origin) -> str:
    value = row.get(name)
    if value is None:
        raise RowError(name, "missing: expected text or an assistant turn")
    return one_response(value, name, origin) if isinstance(value, list) else whole(value, name)


def _answer(row: Plain, name: str, origin: Origin) -> Any:
    return response(_said(row, name, origin), name)


def _shared_turns(
    row: Plain, origin: Origin, used: tuple[str, ...], explicit: str | None
) -> tuple[Prompt, str, str]:
    """The prompt that two whole conversations share; all but their last, assistant, turn must be the same."""
    ends = [messages(row[name], name, origin, ends="assistant") for name in ("chosen", "rejected")]
    if ends[0][:-1] != ends[1][:-1]:
        raise RowError(
            "rejected", "chosen and rejected do not share their prompt: they part before the last turn"
        )
    *asked, last = ends[0]
    if explicit and not _agrees(row[explicit], tuple(asked), explicit, origin):
        raise RowError(explicit, "another prompt than the one chosen and rejected begin with")
    said = prompt(asked, origin, tags=tags(row, (*used, *([explicit] if explicit else []))), field="chosen")
    return said, last.text, ends[1][-1].text


def _agrees(value: Any, asked: tuple[Message, ...], field: str, origin: Origin) -> bool:
    if is_turns(value):
        return messages(value, field, origin) == asked
    return whole(value, field).strip() == asked[-1].text.strip()


def _shared_text(row: Plain, origin: Origin, used: tuple[str, ...]) -> tuple[Prompt, str, str]:
    """The words that two texts share at their beginning are the prompt, up to the last whole word."""
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if chosen == rejected:
        raise RowError("chosen", "chosen and rejected are the same")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    at = min(len(chosen), len(rejected)) if shared is None else shared
    while at and not chosen[at - 1].isspace():
        at -= 1
    at = len(chosen[:at].rstrip())
    if not at:
        raise RowError("prompt", "missing, and chosen and rejected do not begin with the same words")
    return prompt([user(chosen[:at])], origin, tags=tags(row, used)), chosen[at:], rejected[at:]


def _strength(row: Plain) -> float | None:
    """`margin`, or the distance of the two scores."""
    margin = number(row.get("margin"), "margin")
    if margin is not None and margin < 0:
        raise RowError("margin", f"below zero: the rejected response would be the better one, got {margin}")
    high, low = (number(row.get(f"score_{name}"), f"score_{name}") for name in ("chosen", "rejected"))
    if margin is None and high is not None and low is not None:
        if high < low:
            raise RowError("score_chosen", f"below score_rejected: {high} against {low}")
        return high - low
    return margin
