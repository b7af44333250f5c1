"""Each format that is recognised: what a row of it becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.formats import FORMATS, ReadOptions, Rejects, RowError, read_rows
from posttrain.formats.build import Origin
from posttrain.formats.registry import recognise
from posttrain.records import Comparison, Demonstration, Document, Prompt, Rating, Row, prompt_key


def said(*turns: str) -> list[dict[str, str]]:
    """Turns that alternate, beginning with the user's."""
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


def show(row: Any) -> Any:
    """What matters of a row, in short."""
    if isinstance(row, Document):
        return row.text
    prompt = row if isinstance(row, Prompt) else row.prompt
    turns = tuple(f"{m.role[0]}:{m.text}" for m in prompt.messages)
    if isinstance(row, Prompt):
        return turns
    if isinstance(row, Demonstration):
        return turns, row.response.text
    if isinstance(row, Comparison):
        return turns, row.chosen.text, row.rejected.text
    return turns, row.response.text, row.label if row.label is not None else row.scores


def one_format(
    tmp_path: Path, row: Any, kind: type[Row] | None, **options: Any
) -> tuple[str, list[Any], Rejects]:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with Rejects() as rejects:
        rows = list(read_rows(path, kind, options=ReadOptions(**options), rejects=rejects))
    return rejects.formats[str(path)], rows, rejects


ULTRA = {
    "source": "evol_instruct",
    "instruction": "Name a colour.",
    "completions": [
        {
            "model": "alpaca-7b",
            "response": "Table.",
            "overall_score": 1.0,
            "annotations": {"honesty": {"Rating": "2", "Rationale": "…"}, "truthfulness": {"Rating": "N/A"}},
        },
        {
            "model": "gpt-4",
            "response": "Blue.",
            "overall_score": 8.5,
            "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "5"}},
        },
        {
            "model": "bard",
            "response": "Sky.",
            "overall_score": 4.0,
            "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "1"}},
        },
    ],
}
ASKED = ("u:Name a colour.",)

CASES: list[tuple[str, Any, type[Row] | None, list[Any]]] = [
    ("text", {"text": "Once.\n", "url": "x"}, None, ["Once.\n"]),
    ("trl-prompt", {"prompt": "The sky is"}, None, [("u:The sky is",)]),
    ("trl-prompt", {"prompt": said("Hi", "Hello", "Bye")}, None, [("u:Hi", "a:Hello", "u:Bye")]),
    (
        "trl-completion",
        {"prompt": "The sky is", "completion": " blue."},
        None,
        [(("u:The sky is",), " blue.")],
    ),
    (
        "trl-completion",
        {"prompt": said("Hi"), "completion": said("", "Hello")[1:]},
        None,
        [(("u:Hi",), "Hello")],
    ),
    ("trl-completion", {"prompt": "p", "response": "r", "system": "s"}, None, [(("s:s", "u:p"), "r")]),
    ("trl-messages", {"messages": said("a", "b", "c", "d")}, None, [(("u:a", "a:b", "u:c"), "d")]),
    ("trl-messages", {"messages": said("a", "b", "c")}, Prompt, [("u:a", "a:b", "u:c")]),
    ("trl-messages", {"messages": said("a", "b")}, Prompt, [("u:a",)]),
    (
        "trl-messages",
        {"messages": [{"role": "system", "content": ""}, *said("a", "b")]},
        None,
        [(("u:a",), "b")],
    ),
    (
        "trl-messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *said("", "b")[1:]]},
        None,
        [(("u:a",), "b")],
    ),
    ("trl-preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, None, [(("u:p",), "a", "b")]),
    (
        "trl-preference",
        {"question": "p", "chosen": "a", "rejected": "b", "system": "s"},
        None,
        [(("s:s", "u:p"), "a", "b")],
    ),
    (
        "trl-preference",
        {"prompt": said("p"), "chosen": said("", "a")[1:], "rejected": said("", "b")[1:]},
        None,
        [(("u:p",), "a", "b")],
    ),
    (
        "trl-preference",
        {"chosen": said("p", "q", "r", "a"), "rejected": said("p", "q", "r", "b")},
        None,
        [(("u:p", "a:q", "u:r"), "a", "b")],
    ),
    (
        "trl-preference",
        {"prompt": "p", "chosen": said("p", "a"), "rejected": said("p", "b"), "messages": said("p", "a")},
        None,
        [(("u:p",), "a", "b")],
    ),
    (
        "trl-preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        None,
        [(("u:The sky is",), " blue.", " black.")],
    ),
    ("trl-preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, Demonstration, [(("u:p",), "a")]),
    ("trl-preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, Prompt, [("u:p",)]),
    (
        "trl-preference",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        Rating,
        [(("u:p",), "a", True), (("u:p",), "b", False)],
    ),
    ("trl-preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, Document, ["p\n\na"]),
    ("trl-unpaired", {"prompt": "p", "completion": "c", "label": False}, None, [(("u:p",), "c", False)]),
    ("trl-unpaired", {"prompt": "p", "completion": "c", "label": "True"}, None, [(("u:p",), "c", True)]),
    (
        "trl-unpaired",
        {"prompt": said("p"), "completion": said("", "c")[1:], "label": 1},
        None,
        [(("u:p",), "c", True)],
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        None,
        [(("u:Add.\n\n1 and 2",), "3")],
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "", "output": "3", "text": "Below is"},
        None,
        [(("u:Add.",), "3")],
    ),
    (
        "alpaca",
        {"instruction": "And now?", "output": "5", "history": [["2+2?", "4"]], "system": "Count."},
        None,
        [(("s:Count.", "u:2+2?", "a:4", "u:And now?"), "5")],
    ),
    (
        "self-instruct",
        {
            "instruction": "Add.",
            "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "0"}],
        },
        None,
        [(("u:Add.\n\n1, 2",), "3"), (("u:Add.",), "0")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "h"},
                {"from": "gpt", "value": "g"},
            ]
        },
        None,
        [(("s:s", "u:h"), "g")],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "h"}], "system": "s"},
        Prompt,
        [("s:s", "u:h")],
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        None,
        [(("u:Hi",), "Hello", "No")],
    ),
    (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\nb\n\nHuman: c\n\nAssistant: d ",
            "rejected": "\n\nHuman: a\n\nAssistant: b\nb\n\nHuman: c\n\nAssistant:  e\n\ne",
        },
        None,
        [(("u:a", "a:b\nb", "u:c"), "d", "e\n\ne")],
    ),
    (
        "hh",
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " No"},
        None,
        [(("u:Hi",), "Hello", "No")],
    ),
    (
        "gsm8k",
        {"question": "1+1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2,000"},
        None,
        [(("u:1+1?",), "It is 1+1=2.\n#### 2,000")],
    ),
    ("facts", {"question": "when", "answer": ["1972", "in 1972", "1972"]}, None, [("u:when",)]),
    ("facts", {"question": "when", "answer": ["1972", "in 1972"]}, Demonstration, [(("u:when",), "1972")]),
    ("facts", {"question": "who", "answers": {"value": "Ada", "aliases": ["A. L."]}}, None, [("u:who",)]),
    (
        "mt-bench",
        {"question_id": 81, "turns": ["first", "second"], "reference": ["x", "y"]},
        None,
        [("u:first",)],
    ),
    (
        "scored",
        ULTRA,
        None,
        [
            (ASKED, "Table.", {"overall": 1.0, "honesty": 2.0, "truthfulness": None}),
            (ASKED, "Blue.", {"overall": 8.5, "honesty": 5.0, "truthfulness": 5.0}),
            (ASKED, "Sky.", {"overall": 4.0, "honesty": 5.0, "truthfulness": 1.0}),
        ],
    ),
    ("scored", ULTRA, Comparison, [(ASKED, "Blue.", "Sky."), (ASKED, "Blue.", "Table.")]),
    ("scored", ULTRA, Demonstration, [(ASKED, "Blue.")]),
    (
        "scored",
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, "2.5"]},
        None,
        [(("u:p",), "a", {"overall": 1.0}), (("u:p",), "b", {"overall": 2.5})],
    ),
    (
        "scored",
        {"prompt": "p", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 3}]},
        Comparison,
        [(("u:p",), "b", "a")],
    ),
]


@pytest.mark.parametrize(("name", "row", "kind", "expected"), CASES)
def test_a_row_of_each_format(tmp_path: Path, name: str, row: Any, kind: Any, expected: list[Any]) -> None:
    found, rows, rejects = one_format(tmp_path, row, kind)
    assert found == name
    assert [show(row) for row in rows] == expected
    assert (rejects.rejected, rejects.left_out) == (0, 0)


def test_every_format_is_tried_above() -> None:
    assert {name for name, *_ in CASES} == set(FORMATS) - {"records", "oasst", "oasst-flat"}


def test_provenance_says_where_a_row_came_from_and_stays_the_same(tmp_path: Path) -> None:
    _, (row,), _ = one_format(
        tmp_path, {"prompt": "p", "completion": "c", "license": "MIT"}, None, licence="own"
    )
    _, (again,), _ = one_format(tmp_path, {"completion": "c", "prompt": "p"}, None, licence="own")
    assert row.provenance.id == again.provenance.id
    assert (row.provenance.source, row.provenance.licence) == ("data.jsonl:1", "MIT")
    assert again.provenance.licence == "own"
    assert row.prompt.provenance.source == "data.jsonl:1"
    _, (other,), _ = one_format(tmp_path, {"prompt": "p", "completion": "d"}, None)
    assert other.provenance.id != row.provenance.id


def test_a_converted_row_names_its_parent(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    _, (pair,), _ = one_format(tmp_path, row, None)
    _, (good, bad), _ = one_format(tmp_path, row, Rating)
    assert good.provenance.parents == bad.provenance.parents == (pair.provenance.id,)
    assert good.provenance.id != bad.provenance.id
    assert good.provenance.makers == {"label": "person"}


def test_columns_that_nothing_reads_become_tags(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "solution": "42",
        "level": 3,
        "topics": ["a", "b"],
        "hard": True,
        "none": None,
        "id": "x",
    }
    _, (prompt,), _ = one_format(tmp_path, row, None)
    assert prompt.reference == "42"
    assert prompt.tags == {"level": "3", "topics": '["a", "b"]', "hard": "true", "id": "x"}


def test_references(tmp_path: Path) -> None:
    _, (facts,), _ = one_format(tmp_path, {"question": "when", "answer": ["1972", "in 1972", "1972"]}, None)
    assert (facts.reference, facts.references) == ("1972", ("1972", "in 1972"))
    _, (single,), _ = one_format(tmp_path, {"question": "when", "answer": "1972"}, None)
    assert (single.reference, single.references, single.tags) == ("1972", ("1972",), {})
    _, (bare,), _ = one_format(tmp_path, {"prompt": "p", "references": "only one"}, None)
    assert bare.references == ("only one",)
    _, (maths,), _ = one_format(tmp_path, {"question": "?", "answer": "so\n#### 1,234.5"}, None)
    assert maths.prompt.reference == "1234.5"


def test_gsm8k_annotations_are_kept_where_asked(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "It is <<1+1=2>>2.\n#### 2"}
    _, (kept,), _ = one_format(tmp_path, row, None, calculator=True)
    assert kept.response.text == row["answer"]
    _, (bare,), _ = one_format(tmp_path, row, None)
    assert bare.response.text == "It is 2.\n#### 2"


def test_mt_bench_keeps_its_later_turns(tmp_path: Path) -> None:
    row = {"question_id": 95, "category": "roleplay", "turns": ["one", "two"], "reference": ["r1", "r2"]}
    _, (prompt,), _ = one_format(tmp_path, row, None)
    assert prompt.reference == "r1"
    assert prompt.tags == {
        "question_id": "95",
        "category": "roleplay",
        "next_turns": '["two"]',
        "next_references": '["r2"]',
    }


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "reason"),
    [
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: X\n\nHuman: c\n\nAssistant: e",
            "rejected",
            "chosen and rejected do not share their prompt",
        ),
        ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b", "chosen", "an empty response"),
        (
            "\n\nHuman: a\n\nAssistant: b",
            "\n\nHuman: a\n\nAssistant: b",
            "chosen",
            "chosen and rejected are the same",
        ),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: d",
            "chosen",
            "roles out of order|no user turn at the end",
        ),
        ("\n\nHuman: \n\nAssistant: b", "\n\nHuman: \n\nAssistant: c", "chosen", "an empty turn: turn 1"),
        ("\n\nHuman: a", "\n\nHuman: a\n\nAssistant: c", "chosen", "no assistant turn"),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
            "\n\nHuman: a\n\nAssistant: d",
            "chosen",
            "no assistant turn at the end",
        ),
    ],
)
def test_transcripts_that_cannot_be_used(
    tmp_path: Path, chosen: str, rejected: str, field: str, reason: str
) -> None:
    _, rows, rejects = one_format(tmp_path, {"chosen": chosen, "rejected": rejected}, None)
    assert rows == []
    ((kind, count),) = rejects.reasons.items()
    assert count == 1
    assert kind.startswith(f"'{field}': ")
    assert any(part in kind for part in reason.split(":")[0].split("|")), kind


def test_preferences_whose_conversations_part_too_early(tmp_path: Path) -> None:
    row: dict[str, Any] = {"chosen": said("p", "q", "r", "a"), "rejected": said("p", "X", "r", "b")}
    _, rows, rejects = one_format(tmp_path, row, None)
    assert rows == []
    assert list(rejects.reasons) == ["'rejected': chosen and rejected do not share their prompt"]
    row = {"prompt": "another", "chosen": said("p", "a"), "rejected": said("p", "b")}
    _, rows, rejects = one_format(tmp_path, row, None)
    assert list(rejects.reasons) == ["'prompt': another prompt than the one chosen and rejected begin with"]
    _, rows, rejects = one_format(tmp_path, {"chosen": "Blue sky", "rejected": "Black sky"}, None)
    assert list(rejects.reasons) == [
        "'prompt': missing, and chosen and rejected do not begin with the same words"
    ]


def test_strength_comes_from_a_margin_or_from_two_scores(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    extras: list[tuple[dict[str, Any], float | None]] = [
        ({}, None),
        ({"margin": 0.5}, 0.5),
        ({"score_chosen": 8.5, "score_rejected": 7}, 1.5),
        ({"score_chosen": 8.5, "score_rejected": None}, None),
    ]
    for extra, strength in extras:
        _, (row,), _ = one_format(tmp_path, {**pair, **extra}, None)
        assert row.strength == strength
        assert row.prompt.tags == {}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("best-vs-each", [("Blue.", "Sky.", 4.5), ("Blue.", "Table.", 7.5)]),
        ("best-vs-worst", [("Blue.", "Table.", 7.5)]),
        ("all", [("Blue.", "Sky.", 4.5), ("Blue.", "Table.", 7.5), ("Sky.", "Table.", 3.0)]),
    ],
)
def test_which_pairs_scored_responses_give(tmp_path: Path, pairs: str, expected: list[Any]) -> None:
    _, rows, _ = one_format(tmp_path, ULTRA, Comparison, pairs=pairs)
    assert [(row.chosen.text, row.rejected.text, row.strength) for row in rows] == expected
    assert rows[0].provenance.makers["chosen"] == "gpt-4"
    assert rows[0].prompt.tags == {"source": "evol_instruct"}


def test_scores_are_never_made_up(tmp_path: Path) -> None:
    _, rows, rejects = one_format(tmp_path, ULTRA, Comparison, aspect="truthfulness")
    assert [(row.chosen.text, row.rejected.text, row.aspect) for row in rows] == [
        ("Blue.", "Sky.", "truthfulness")
    ]
    assert dict(rejects.reasons) == {"'completions[]': no score by truthfulness": 1}
    _, rows, rejects = one_format(tmp_path, ULTRA, Comparison, aspect="mean")
    assert [(row.chosen.text, row.rejected.text, row.strength) for row in rows] == [("Blue.", "Sky.", 2.0)]
    assert rejects.rejected == 1  # the mean of one answer of two is not comparable
    silent = {"prompt": "p", "responses": ["a", "b"], "scores": [None, "N/A"]}
    _, rows, rejects = one_format(tmp_path, silent, Rating)
    assert (rows, rejects.rejected) == ([], 2)


def test_equal_scores_are_no_preference(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [2, 2, 1]}
    _, rows, rejects = one_format(tmp_path, row, Comparison)
    assert [(row.chosen.text, row.rejected.text) for row in rows] == [("a", "c")]
    assert (rejects.rejected, dict(rejects.choices)) == (0, {"'responses[]': equal scores": 1})


def test_one_bad_part_does_not_cost_the_others(tmp_path: Path) -> None:
    row = {
        "instruction": "Add.",
        "instances": [{"input": "1", "output": ""}, {"input": "2", "output": "2"}, 7],
    }
    _, rows, rejects = one_format(tmp_path, row, None)
    assert [row.response.text for row in rows] == ["2"]
    assert dict(rejects.reasons) == {
        "'instances[]…output': an empty response": 1,
        "'instances[]': expected an input and an output": 1,
    }
    row = {"prompt": "p", "responses": ["a", "", "c"], "scores": [1, 2, 3]}
    _, rows, rejects = one_format(tmp_path, row, None)
    assert [row.response.text for row in rows] == ["a", "c"]
    assert rejects.rejected == 1


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


def test_ids_of_prompts_do_not_depend_on_what_stands_beside_them(tmp_path: Path) -> None:
    _, (a,), _ = one_format(tmp_path, {"prompt": "p", "completion": "c", "topic": "x"}, None)
    _, (b,), _ = one_format(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "d"}, None)
    assert prompt_key(a.prompt) == prompt_key(b.prompt)
    assert a.prompt.provenance.id == b.prompt.provenance.id
