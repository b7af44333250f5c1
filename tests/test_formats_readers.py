"""Each format that is recognised: what a row of it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from format_rows import ULTRA, one_format, said, show

from posttrain.formats import FORMATS
from posttrain.records import Comparison, Demonstration, Document, Prompt, Rating, Row, prompt_key

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


def test_ids_of_prompts_do_not_depend_on_what_stands_beside_them(tmp_path: Path) -> None:
    _, (a,), _ = one_format(tmp_path, {"prompt": "p", "completion": "c", "topic": "x"}, None)
    _, (b,), _ = one_format(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "d"}, None)
    assert prompt_key(a.prompt) == prompt_key(b.prompt)
    assert a.prompt.provenance.id == b.prompt.provenance.id
