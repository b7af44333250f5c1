"""What a chat server may say, read into a reply, or into why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# What no server can mean: counts and ids beyond 31 bits, and log-probs above 0 by more than rounding.
_MOST, _ROUNDING = 2**31, 1e-3
_CUT_SHORT = {"content_filter": "content filter", "tool_calls": "a tool call", "function_call": "a tool call"}


@dataclass(frozen=True)
class Reply:
    """An answer.

    finish: "stop", "length", None where the server gave another reason or none. token_ids, logps: where the
    server gives both for what was sampled (vLLM's does when asked). input, output: tokens of the prompt and
    of the answer; None where the server did not count.
    """

    text: str
    finish: Literal["stop", "length"] | None
    token_ids: tuple[int, ...] | None = None
    logps: tuple[float, ...] | None = None
    input: int | None = None
    output: int | None = None


@dataclass(frozen=True)
class NoReply:
    """A request that was not answered with text, and why. input, output: as paid, if it was."""

    reason: str
    input: int | None = None
    output: int | None = None


class Unreadable(ValueError):
    """A body that is no chat completion, or one with something in it that cannot be."""


def read_reply(body: bytes) -> Reply | NoReply:
    """The first choice of a chat completion. Raises Unreadable for anything else."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise Unreadable(f"no JSON: {body[:80]!r}") from None
    if not isinstance(said, Mapping) or not isinstance(said.get("choices"), list):
        raise Unreadable(f"no chat completion: {body[:80]!r}")
    counted = said.get("usage") if isinstance(said.get("usage"), Mapping) else {}
    input, output = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    choice = said["choices"][0] if said["choices"] else None
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        return NoReply("no choice", input, output)
    message, ended = choice["message"], choice.get("finish_reason")
    if ended is not None and not isinstance(ended, str):
        raise Unreadable(f"a completion with a finish_reason of {str(ended)[:40]!r}")
    if ended in _CUT_SHORT:
        return NoReply(_CUT_SHORT[ended], input, output)
    if message.get("refusal"):
        return NoReply("refusal", input, output)
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        return NoReply("no text", input, output)
    ids, logps = _tokens(choice)
    finish: Any = ended if ended in ("stop", "length") else None
    return Reply(text, finish, ids, logps, input, output)


def to_json(reply: Reply | NoReply) -> str:
    return json.dumps(asdict(reply))


def from_json(text: str) -> Reply | NoReply:
    """What `to_json` wrote. Raises Unreadable for anything else."""
    try:
        said = json.loads(text)
        reply = NoReply(**said) if "reason" in said else _reply(said)
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise Unreadable(f"{type(e).__name__}: {e}") from None
    if not isinstance(reply.reason if isinstance(reply, NoReply) else reply.text, str):
        raise Unreadable(f"no reply: {text[:80]!r}")
    return reply


def _reply(said: dict[str, Any]) -> Reply:
    for name in ("token_ids", "logps"):
        said[name] = None if said[name] is None else tuple(said[name])
    return Reply(**said)


def _count(counted: Any, name: str) -> int | None:
    value = counted.get(name)
    if isinstance(value, int) and value > _MOST:
        raise Unreadable(f"a completion of more {name} than there can be")
    return value if isinstance(value, int) and value >= 0 else None


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Ids and log-probs of the sampled tokens; None twice unless there is one of each for every token.

    Raises Unreadable for ids or log-probs that cannot be.
    """
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs") or {}
    content = (logprobs.get("content") or []) if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        raise Unreadable(f"a completion with logprobs of {str(logprobs)[:40]!r}")
    logps = [entry["logprob"] for entry in content if _is_number(entry, "logprob")]
    if logps and max(logps) > _ROUNDING:
        raise Unreadable(f"a completion with a log-probability of {max(logps):g}")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids):
        return None, None
    if min(ids) < 0 or max(ids) >= _MOST:
        raise Unreadable(f"a completion with the token ids {min(ids)} to {str(max(ids))[:40]}")
    return (tuple(ids), tuple(map(float, logps))) if len(ids) == len(logps) == len(content) else (None, None)


def _is_number(entry: Any, name: str) -> bool:
    value = entry.get(name) if isinstance(entry, Mapping) else None
    return isinstance(value, int | float) and abs(value) < _MOST
