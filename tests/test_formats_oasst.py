"""Conversation trees: every path, every ranked pair, and what is left out of them."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from posttrain.formats import ReadOptions, Rejects, read_rows
from posttrain.records import Comparison, Demonstration, Prompt, Row


def node(text: str, *replies: Any, rank: int | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "text": text,
        "rank": rank,
        "review_result": True,
        "deleted": False,
        "replies": list(replies),
        **fields,
    }


def tree(root: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Roles alternate from the prompter down."""

    def with_roles(node: dict[str, Any], role: str) -> dict[str, Any]:
        below = "assistant" if role == "prompter" else "prompter"
        return {"role": role, **node, "replies": [with_roles(reply, below) for reply in node["replies"]]}

    return {
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "prompt": with_roles(root, "prompter"),
        **fields,
    }


def read(
    tmp_path: Path, row: Any, kind: type[Row] | None = None, **options: Any
) -> tuple[list[Any], Rejects]:
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with Rejects() as rejects:
        rows = list(read_rows(path, kind, options=ReadOptions(**options), rejects=rejects))
    return rows, rejects


# q ── a1 ── q1 ── b1          (b1 answers q1)
#   │    └── q2                (nobody answered q2)
#   └─ a2
TREE = tree(
    node(
        "q",
        node("a1", node("q1", node("b1", rank=0)), node("q2"), rank=1, synthetic=True, model_name="chip"),
        node("a2", rank=0),
        lang="en",
    )
)


def path_of(row: Any) -> str:
    prompt = row if isinstance(row, Prompt) else row.prompt
    turns = [turn.text for turn in prompt.messages]
    return " ".join([*turns, row.response.text] if isinstance(row, Demonstration) else turns)


def test_demonstrations_along_every_path(tmp_path: Path) -> None:
    rows, rejects = read(tmp_path, TREE)
    assert [path_of(row) for row in rows] == ["q a1 q1 b1", "q a2"]
    assert rows[0].provenance.makers == {"response": "a volunteer"}
    assert rows[0].prompt.tags == {"message_tree_id": "t1", "language": "en"}
    assert (rejects.rejected, rejects.left_out) == (0, 0)


def test_demonstrations_for_every_reply(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, TREE, paths="replies")
    assert [path_of(row) for row in rows] == ["q a1", "q a1 q1 b1", "q a2"]
    assert rows[0].provenance.makers == {"response": "chip"}


def test_prompts_are_every_turn_of_the_prompter(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, TREE, Prompt)
    assert [path_of(row) for row in rows] == ["q", "q a1 q1", "q a1 q2"]


def test_ranked_siblings_are_compared(tmp_path: Path) -> None:
    ranked = tree(node("q", node("third", rank=2), node("first", rank=0), node("second", rank=1)))
    rows, _ = read(tmp_path, ranked, Comparison)
    shown = [(row.chosen.text, row.rejected.text, row.strength) for row in rows]
    assert shown == [("first", "second", 1.0), ("first", "third", 2.0)]
    rows, _ = read(tmp_path, ranked, Comparison, pairs="all")
    assert [(row.chosen.text, row.rejected.text) for row in rows] == [
        ("first", "second"),
        ("first", "third"),
        ("second", "third"),
    ]


def test_a_reply_without_a_rank_is_compared_with_nothing(tmp_path: Path) -> None:
    row = tree(node("q", node("a", rank=0), node("b", rank=1), node("c")))
    rows, rejects = read(tmp_path, row, Comparison)
    assert [(row.chosen.text, row.rejected.text) for row in rows] == [("a", "b")]
    assert dict(rejects.choices) == {"'prompt…rank': no rank": 1}


def test_deleted_and_unreviewed_messages_are_left_out_with_what_is_below_them(tmp_path: Path) -> None:
    row = tree(
        node(
            "q",
            node("deleted", node("q1", node("b1")), rank=0, deleted=True),
            node("failed", rank=1, review_result=False),
            node("unseen", rank=2, review_result=None),
            node("good", rank=3),
        )
    )
    rows, rejects = read(tmp_path, row)
    assert [path_of(row) for row in rows] == ["q good"]
    assert (rejects.rejected, rejects.left_out) == (0, 3)
    assert set(rejects.choices) == {
        "'prompt…deleted': a deleted message",
        "'prompt…review_result': a message that failed its review",
        "'prompt…review_result': a message that was never reviewed",
    }
    rows, rejects = read(tmp_path, row, unreviewed=True)
    assert [path_of(row) for row in rows] == ["q failed", "q unseen", "q good"]
    assert rejects.left_out == 1


def test_abandoned_trees_are_left_out(tmp_path: Path) -> None:
    rows, rejects = read(tmp_path, {**TREE, "tree_state": "halted_by_moderator"})
    assert rows == []
    assert dict(rejects.choices) == {"'tree_state': an abandoned tree": 1}


def test_a_damaged_message_costs_only_what_is_below_it(tmp_path: Path) -> None:
    row = tree(node("q", node("bad \x00", node("q1", node("b1"))), node("", rank=0), node("good")))
    rows, rejects = read(tmp_path, row)
    assert [path_of(row) for row in rows] == ["q good"]
    assert dict(rejects.reasons) == {
        "'prompt…text': a NUL character": 1,
        "'prompt…text': empty": 1,
    }


def test_roles_out_of_order_in_a_tree(tmp_path: Path) -> None:
    row = tree(node("q", node("a"), node("also a prompter", role="prompter")))
    row["prompt"]["replies"][1]["role"] = "prompter"
    rows, rejects = read(tmp_path, row)
    assert [path_of(row) for row in rows] == ["q a"]
    assert dict(rejects.reasons) == {"'prompt…role': roles out of order": 1}


def flat(root: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    """The messages of a tree, one a row."""
    id = f"id of {root['text']}"
    own = {key: value for key, value in root.items() if key != "replies"}
    row = {
        **own,
        "message_id": id,
        "parent_id": parent,
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
    }
    return [row, *(each for reply in root["replies"] for each in flat(reply, id))]


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "messages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", [Demonstration, Comparison, Prompt])
def test_messages_one_a_row_are_the_same_trees(tmp_path: Path, kind: type[Row]) -> None:
    nested, _ = read(tmp_path, TREE, kind)
    rows = flat(TREE["prompt"])
    for order in (rows, rows[::-1]):
        with Rejects() as rejects:
            found: list[Any] = list(read_rows(write(tmp_path, order), kind, rejects=rejects))
        key = attrgetter("provenance.id")
        assert sorted(found, key=key) == sorted(
            (row.model_copy(update=moved(row, found)) for row in nested), key=key
        )
        assert (rejects.rejected, list(rejects.formats.values())) == (0, ["oasst-flat"])


def moved(row: Any, found: list[Any]) -> dict[str, Any]:
    """What a row has of the file it was read from."""
    twin = next(other for other in found if other.provenance.id == row.provenance.id)
    fields = {"provenance": twin.provenance}
    return {**fields, "prompt": twin.prompt} if not isinstance(row, Prompt) else {**fields, "tags": twin.tags}


def test_messages_without_a_tree_are_put_aside(tmp_path: Path) -> None:
    rows = flat(TREE["prompt"])
    lost = [row for row in rows if row["text"] != "q1"]  # b1 answers q1
    circle = [
        {**rows[1], "message_id": "x", "parent_id": "y"},
        {**rows[1], "message_id": "y", "parent_id": "x"},
    ]
    with Rejects() as rejects:
        found = list(read_rows(write(tmp_path, [*lost, *circle, rows[0]]), rejects=rejects))
    assert [path_of(row) for row in found] == ["q a1", "q a2"]
    assert dict(rejects.reasons) == {
        "'parent_id': no way up to the root of a tree": 3,
        "'message_id': expected an id that no other message has": 1,
    }
