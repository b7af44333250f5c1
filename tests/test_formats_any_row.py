"""Rows of no format, and rows of anything: none is taken for what it is not, and no reader breaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.formats import FORMATS, ReadOptions, RowError
from posttrain.formats.build import Origin
from posttrain.formats.registry import recognise
from posttrain.records import Row


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},  # multiple choice
        {"question": "What?", "context": "A text.", "answers": {"text": ["x"]}},  # about a text
        {"prompt": "p", "completions": ["step one", "step two"], "labels": [True, False]},  # step by step
        {"role": "prompter", "text": "flat"},  # a turn of something
        {"anything": 1},
        {},
    ],
)
def test_rows_that_look_like_something_but_are_not_are_left_alone(row: Any) -> None:
    assert not [name for name, format in FORMATS.items() if format.matches(row)]


KEYS = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "instruction",
    "output",
    "instances",
    "history",
    "question",
    "answer",
    "answers",
    "turns",
    "reference",
    "completions",
    "responses",
    "scores",
    "models",
    "text",
    "label",
    "margin",
    "system",
    "input",
    "completion",
    "kind",
    "provenance",
    "tree_state",
    "score_chosen",
    "score_rejected",
    "references",
]


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(
        [
            "",
            "a",
            "a b",
            "\n\nHuman: a\n\nAssistant: b",
            "x #### 1",
            "user",
            "assistant",
            "prompt",
            "\x00",
            "N/A",
        ]
    )
)


INNER = [
    "role",
    "content",
    "from",
    "value",
    "text",
    "replies",
    "rank",
    "score",
    "annotations",
    "input",
    "output",
    "Rating",
    "type",
    "image",
    "review_result",
    "deleted",
    "aliases",
    "id",
    "scores",
]


values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), values, max_size=5), name=st.sampled_from(sorted(FORMATS)))
def test_no_reader_breaks_on_any_row(row: dict[str, Any], name: str) -> None:
    """A row either gives rows or says why not; it never stops the file."""
    format = FORMATS[name]
    assert format.matches(row) in (True, False)
    for read in format.reads.values():
        try:
            for made in read(row, Origin("d.jsonl", 1, ReadOptions(unreviewed=True, pairs="all"))):
                assert isinstance(made, Row | RowError)
        except (RowError, ValidationError):
            pass


def test_recognition_prefers_what_most_rows_are() -> None:
    good, odd = {"prompt": "p", "completion": "c"}, {"text": "t"}
    assert recognise([odd, good, good], "f") == "trl-completion"
