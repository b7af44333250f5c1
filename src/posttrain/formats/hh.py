"""Transcripts as in hh-rlhf: "\\n\\nHuman: …\\n\\nAssistant: …", split at the last assistant turn.

Bai et al. 2022, "Training a Helpful and Harmless Assistant with RLHF".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.formats.build import Origin, comparison, prompt, response
from posttrain.formats.fields import Plain, tags, text
from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Message, Response

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
LAST = re.compile(r"(?s)(.*(?:^|\n\n))Assistant:(.*)")


def matches(row: Plain) -> bool:
    """Both sides are transcripts; or the prompt is one, and the sides are what the assistant said last."""
    whole = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(side, str) for side in whole):
        return False
    opening = [row.get("prompt")] if isinstance(row.get("prompt"), str) else whole
    return all(str(side).lstrip().startswith("Human:") for side in opening)


def read(row: Plain, origin: Origin) -> Iterator[Comparison]:
    """White space around each turn is not part of it. Raises RowError where the two prompts differ."""
    if isinstance(row.get("prompt"), str) and not text(row, "chosen").lstrip().startswith("Human:"):
        before, after = split(text(row, "prompt"), "prompt")
        if after.strip():
            raise RowError("prompt", "an unfinished transcript: expected it to end with 'Assistant:'")
        sides = [(before, text(row, "chosen")), (before, text(row, "rejected"))]
    else:
        sides = [split(text(row, name), name) for name in ("chosen", "rejected")]
    (asked, chosen), (other, rejected) = sides
    if asked.strip() != other.strip():
        raise RowError(
            "rejected", "chosen and rejected do not share their prompt: they part before the last turn"
        )
    said = prompt(
        turns(asked, "chosen"), origin, tags=tags(row, ("prompt", "chosen", "rejected")), field="chosen"
    )
    better, worse = _last_words(chosen, "chosen"), _last_words(rejected, "rejected")
    yield comparison(said, better, worse, origin, makers={"preference": "person"})


def _last_words(words: str, field: str) -> Response:
    if TURN.search(words):
        raise RowError(field, "no assistant turn at the end: the last turn is the human's")
    return response(words.strip(), field)


def split(transcript: str, field: str) -> tuple[str, str]:
    """The transcript before its last assistant turn, and the words of that turn."""
    found = LAST.fullmatch(transcript)
    if not found:
        raise RowError(field, "no assistant turn: expected a transcript that ends with 'Assistant: …'")
    return found.group(1), found.group(2)


def turns(transcript: str, field: str) -> list[Message]:
    """The turns of a transcript. Raises RowError for an empty one."""
    opening, *rest = TURN.split(transcript.strip())
    if opening.strip():
        raise RowError(field, "no transcript: expected it to begin with 'Human:'")
    found = []
    for i, (who, words) in enumerate(zip(rest[::2], rest[1::2], strict=True), 1):
        if not words.strip():
            raise RowError(field, f"an empty turn: turn {i}, of the {who.lower()}")
        found.append(Message(role="user" if who == "Human" else "assistant", content=words.strip()))
    if not found:
        raise RowError(field, "no turns: expected 'Human: …' before the last 'Assistant:'")
    return found
