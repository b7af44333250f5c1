"""Open Assistant messages, one a row as on the Hugging Face hub: put together to trees, then read so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from posttrain.formats.fields import Plain
from posttrain.formats.raw import Raw
from posttrain.formats.rejects import Rejects, RowError


def matches(row: Plain) -> bool:
    return isinstance(row.get("message_id"), str) and "parent_id" in row and "role" in row and "text" in row


def gather(raws: Iterable[Raw], rejects: Rejects) -> Iterator[Raw]:
    """One row a tree, in the order of their roots; holds all messages in memory.

    A message that hangs on no root (its parent is missing, or an id stands twice) goes to `rejects`.
    """
    found: dict[str, tuple[Raw, dict[str, Any]]] = {}
    for raw in raws:
        id = raw.row.get("message_id")
        if not isinstance(id, str) or id in found:
            error = RowError("message_id", "expected an id that no other message has")
            rejects.add(raw.file, raw.line, error, raw.row)
        else:
            found[id] = (raw, {**raw.row, "replies": []})
    roots = []
    for raw, node in found.values():
        parent = raw.row.get("parent_id")
        if not parent:
            roots.append((raw, node))
        elif isinstance(parent, str) and parent in found:
            found[parent][1]["replies"].append(node)
    unreached = dict.fromkeys(found)
    for raw, root in roots:
        waiting = [root]
        while waiting:
            node = waiting.pop()
            unreached.pop(node["message_id"])
            waiting.extend(node["replies"])
        state = {"message_tree_id": raw.row.get("message_tree_id"), "tree_state": raw.row.get("tree_state")}
        yield Raw(raw.file, raw.line, {**state, "prompt": root})
    for id in unreached:
        raw = found[id][0]
        rejects.add(raw.file, raw.line, RowError("parent_id", "no way up to the root of a tree"), raw.row)
