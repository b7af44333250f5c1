"""Lists of turns, as chat formats write them, to messages."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.formats.build import Origin
from posttrain.formats.fields import named, whole
from posttrain.formats.rejects import RowError
from posttrain.records import ImagePart, Message, Role, TextPart, check_turns

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
# What a turn may hold beside its words and what would be lost if it were left unread.
LOST = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "thinking")


def is_turns(value: Any) -> bool:
    """Whether a value looks like a list of turns: objects with a role (or `from`) each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def messages(
    value: Any, field: str, origin: Origin, ends: Literal["user", "assistant"] | None = None
) -> tuple[Message, ...]:
    """The turns of a conversation; an empty system turn, which says nothing, is left out.

    ends: the role that the last turn must have.
    Raises RowError naming the turn for unknown roles, empty turns, turns that hold more than can be kept, and
    roles out of order.
    """
    if not isinstance(value, list) or not value:
        raise RowError(field, f"expected a list of turns: got {named(value)}")
    turns = [_turn(turn, f"{field}[{i}]", origin) for i, turn in enumerate(value)]
    kept = tuple(turn for turn in turns if turn is not None)
    try:
        check_turns(kept)
    except ValueError as e:
        raise RowError(field, str(e)) from None
    if ends and kept[-1].role != ends:
        raise RowError(field, f"no {ends} turn at the end: the last turn is '{kept[-1].role}'")
    return kept


def one_response(value: Any, field: str, origin: Origin) -> str:
    """The text of a list that holds one assistant turn."""
    if not isinstance(value, list) or len(value) != 1:
        raise RowError(field, f"expected one assistant turn: got {named(value)}")
    turn = _turn(value[0], f"{field}[0]", origin)
    if turn is None or turn.role != "assistant" or not isinstance(turn.content, str):
        raise RowError(field, f"expected one assistant turn of text: got {named(value)}")
    return turn.content


def _turn(turn: Any, field: str, origin: Origin) -> Message | None:
    if not isinstance(turn, Mapping):
        raise RowError(field, f"expected a turn with role and content: got {named(turn)}")
    for name in LOST:
        if turn.get(name):
            raise RowError(f"{field}.{name}", "more than words in a turn: it would be lost")
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"{field}.role", f"unknown role: got {named(said)}, known are {', '.join(ROLES)}")
    name = "content" if "content" in turn else "value"
    content = _content(turn.get(name), f"{field}.{name}", origin)
    empty = isinstance(content, str) and not content.strip()
    if empty and role == "system":
        return None
    if empty:
        raise RowError(f"{field}.{name}", "an empty turn")
    return Message(role=role, content=content)


def _content(value: Any, field: str, origin: Origin) -> str | tuple[TextPart | ImagePart, ...]:
    if not isinstance(value, list):
        return whole(value, field)
    parts = tuple(_part(part, f"{field}[{i}]", origin) for i, part in enumerate(value))
    if any(isinstance(part, ImagePart) for part in parts):
        return parts
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def _part(part: Any, field: str, origin: Origin) -> TextPart | ImagePart:
    """{"type": "text", "text"}, {"type": "image", "image"} or {"type": "image_url", "image_url": {"url"}}."""
    if not isinstance(part, Mapping):
        raise RowError(field, f"expected a part of text or an image: got {named(part)}")
    if part.get("text") is not None:
        return TextPart(text=whole(part["text"], f"{field}.text"))
    image = part.get("image") or part.get("image_url") or part.get("path")
    if isinstance(image, Mapping):
        image = _embedded(image) or image.get("url") or image.get("path")
    if not isinstance(image, str):
        raise RowError(field, f"expected a part of text or an image: got {named(dict(part))}")
    if image.startswith(("http://", "https://")):
        raise RowError(field, "an image on the network: fetch it and name the file")
    return ImagePart(image=image_path(image, origin.file))


def image_path(image: str, file: str) -> str:
    """Where an image lies, as it holds from any folder: a data: URL as it is, a path made absolute."""
    return image if image.startswith("data:") else str((Path(file).parent / image).resolve())


def _embedded(image: Mapping[str, Any]) -> str | None:
    """A data: URL for the bytes that Parquet files of `datasets` carry."""
    data = image.get("bytes")
    if not isinstance(data, bytes):
        return None
    kinds = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if data.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
