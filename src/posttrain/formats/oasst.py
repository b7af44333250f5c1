"""Open Assistant conversation trees. Köpf et al. 2023, "OpenAssistant Conversations".

A tree is one line: {"message_tree_id", "prompt": {"text", "role", "rank", "review_result", "deleted",
"replies"}}, and each of the replies is such a message again. A message that is deleted, or whose review
failed or never came (the option `unreviewed` keeps those), is left out with all that was written below it,
and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from posttrain.formats.build import Origin, attempt, demonstration, prompt, response
from posttrain.formats.fields import Plain, named, number, tags, text
from posttrain.formats.ranking import Scored, comparisons
from posttrain.formats.rejects import RowError
from posttrain.records import Comparison, Demonstration, Message, Prompt, Role

ABANDONED = ("aborted_low_grade", "halted_by_moderator")
ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}
Path = tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A message that may be used, and the usable ones below it. rank: 0 is the best of its siblings."""

    message: Message
    rank: float | None
    maker: str
    field: str
    replies: tuple[Node, ...]


def matches(row: Plain) -> bool:
    root = row.get("prompt")
    return isinstance(root, dict) and "role" in root and ("replies" in root or "message_id" in root)


def read_demonstrations(row: Plain, origin: Origin) -> Iterator[Demonstration | RowError]:
    """One along every path, to its last reply; or with the option `paths: replies` one for every reply."""
    for path in _paths(row, origin):
        if isinstance(path, RowError):
            yield path
        elif path[-1].message.role == "assistant" and (
            origin.options.paths == "replies" or not any(turn.replies for turn in path[-1].replies)
        ):
            yield attempt(partial(_demonstration, row, path, origin))


def read_prompts(row: Plain, origin: Origin) -> Iterator[Prompt | RowError]:
    """Every turn of the prompter's, with what was said before it."""
    for path in _paths(row, origin):
        if isinstance(path, RowError):
            yield path
        elif path[-1].message.role == "user":
            yield attempt(partial(_asked, row, path, origin))


def read_comparisons(row: Plain, origin: Origin) -> Iterator[Comparison | RowError]:
    """Pairs of replies to the same turn by `rank`; strength is the distance of their ranks."""
    for path in _paths(row, origin):
        if isinstance(path, RowError):
            yield path
        elif path[-1].message.role == "user" and len(path[-1].replies) > 1:
            yield from _ranked(row, path, origin)


def _ranked(row: Plain, path: Path, origin: Origin) -> Iterator[Comparison | RowError]:
    scored = []
    for reply in path[-1].replies:
        if reply.rank is None:
            yield RowError(f"{reply.field}.rank", "no rank: it cannot be compared", by_choice=True)
        else:
            answer = response(reply.message.text, reply.field)
            scored.append(Scored(answer, -reply.rank, reply.maker, reply.field))
    asked = attempt(partial(_asked, row, path, origin))
    if isinstance(asked, RowError):
        yield asked
    else:
        yield from comparisons(asked, scored, origin.options.pairs, origin, aspect="overall", judge="people")


def _demonstration(row: Plain, path: Path, origin: Origin) -> Demonstration:
    answer = response(path[-1].message.text, path[-1].field)
    return demonstration(_asked(row, path[:-1], origin), answer, origin, {"response": path[-1].maker})


def _asked(row: Plain, path: Path, origin: Origin) -> Prompt:
    said = [node.message for node in path]
    return prompt(said, origin, tags=_tags(row), field=path[-1].field)


def _tags(row: Plain) -> dict[str, str]:
    language = row["prompt"].get("lang")
    left = tags(row, ("prompt", "tree_state", "origin"))
    return {**left, "language": language} if isinstance(language, str) else left


def _paths(row: Plain, origin: Origin) -> Iterator[Path | RowError]:
    """Every path from the root to a usable message, parents before children; and what was left out."""
    state = row.get("tree_state")
    if state in ABANDONED:
        yield RowError("tree_state", f"an abandoned tree: {state}", by_choice=True)
        return
    left_out: list[RowError] = []
    root = _node(row.get("prompt"), "prompt", "prompter", origin, left_out)
    yield from left_out
    waiting: list[Path] = [(root,)] if root else []
    while waiting:
        path = waiting.pop()
        yield path
        waiting.extend((*path, reply) for reply in reversed(path[-1].replies))


def _node(value: object, field: str, role: str, origin: Origin, left_out: list[RowError]) -> Node | None:
    """A message and what is below it; where it cannot be used, None, and the reason in `left_out`."""
    try:
        if not isinstance(value, dict):
            raise RowError(field, f"expected a message: got {named(value)}")
        _check(value, field, role, origin)
        words = text({f"{field}.text": value.get("text")}, f"{field}.text")
        rank = number(value.get("rank"), f"{field}.rank")
    except RowError as e:
        left_out.append(e)
        return None
    below = "assistant" if role == "prompter" else "prompter"
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        left_out.append(RowError(f"{field}.replies", f"expected a list of messages: got {named(replies)}"))
        replies = []
    nodes = (
        _node(reply, f"{field}.replies[{i}]", below, origin, left_out) for i, reply in enumerate(replies)
    )
    return Node(
        message=Message(role=ROLES[role], content=words),
        rank=rank,
        maker=str(value.get("model_name") or "a model") if value.get("synthetic") else "a volunteer",
        field=field,
        replies=tuple(node for node in nodes if node),
    )


def _check(value: Plain, field: str, role: str, origin: Origin) -> None:
    if value.get("deleted"):
        raise RowError(f"{field}.deleted", f"a deleted message: left out{_below(value)}", by_choice=True)
    if value.get("review_result") is not True and not origin.options.unreviewed:
        came = "failed its review" if value.get("review_result") is False else "was never reviewed"
        reason = f"a message that {came}: left out{_below(value)}; the option `unreviewed: true` keeps it"
        raise RowError(f"{field}.review_result", reason, by_choice=True)
    if value.get("role") != role:
        got = f"expected {role}, got {named(value.get('role'))}"
        raise RowError(f"{field}.role", f"roles out of order: {got}{_below(value)}")


def _below(value: Plain) -> str:
    size = _size(value) - 1
    return f", with {size} below it" if size else ""


def _size(value: object) -> int:
    replies = value.get("replies") if isinstance(value, dict) else None
    return 1 + (sum(_size(reply) for reply in replies) if isinstance(replies, list) else 0)
