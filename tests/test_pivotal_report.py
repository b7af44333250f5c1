"""The page's section on pivotal tokens: p along an answer, intervals when pointed at, pivots marked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_artifacts import NASTY, write_artifact, write_lines
from test_report import Page

from posttrain.report.collect import Artifact
from posttrain.report.page import build
from posttrain.report.pivotal import pivotal_views

SUMMARY = {
    "questions": 9,
    "states": {"kept": 5, "hard": 3, "no answer": 1},
    "candidates": 4,
    "confirmed": 2,
    "refuted": 1,
    "not_clear": 1,
    "comparisons": 1,
    "ledger": {
        "rollouts": 1200,
        "tokens_decoded": 34_000,
        "tokens_prefilled": 500,
        "oracle_calls": 300,
        "cut_off": 3,
        "no_answer": 4,
        "a_confirmed_pivot": {"rollouts": 600.0, "tokens_decoded": 17_000.0, "seconds": 2.5},
    },
}


def about(name: str, p: float, n: int, **more: Any) -> dict[str, Any]:
    return {name: p, f"{name}_low": max(p - 0.1, 0), f"{name}_high": min(p + 0.1, 1), f"{name}_n": n} | more


ANSWER = {
    "id": "q1",
    "prompt": "What is 3 + 4?",
    "reference": "7",
    "success": False,
    "token_ids": [5, 6, 7, 2],
    "pieces": ["3 +", "\n", NASTY, ""],
    "points": [
        {"after": 0} | about("p", 0.5, 64),
        {"after": 2} | about("p", 0.6, 32),
        {"after": 4} | about("p", 0.0, 64, p_unknown=2.0),
    ],
    "pivots": [
        {
            "at": 2,
            "token": 7,
            "rises": False,
            "state": "confirmed",
            "pair": "confirmed",
            "other": 9,
            "other_text": "7",
        }
        | about("p_before", 0.6, 128)
        | about("p_token", 0.02, 128)
        | about("p_other", 0.97, 128)
        | {"change": -0.58, "change_low": -0.7, "change_high": -0.4},
        {"at": 0, "token": 5, "rises": True, "state": "refuted", "pair": None}
        | about("p_before", 0.5, 64)
        | about("p_token", 0.55, 64)
        | {"change": 0.05, "change_low": 0, "change_high": 0.1},
    ],
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = write_artifact(tmp_path / "pivots-7a2f", "pivotal", {}, 3.0, {"error": 0.05}, SUMMARY)
    none = ANSWER | {"id": "q2", "pivots": ANSWER["pivots"][1:]}
    write_lines(folder / "trajectories.jsonl", [none, ANSWER])
    return folder


def test_the_section_shows_p_along_the_answer(store: Path, tmp_path: Path):
    text = build([store], tmp_path / "out").read_text("utf-8")
    page = Page(text)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    tokens = [
        a for tag, a in page.tags if tag == "span" and a.get("class", "").startswith("token") and "title" in a
    ]
    assert [a["style"] for a in tokens] == ["--p:0.500", "--p:0.600", "--p:0.600", "--p:0.020", "--p:0.000"]
    assert tokens[3]["class"] == "token pivot falls"
    assert tokens[1]["title"] == "token 1: p after token 2 0.60 [0.50, 0.70], 32 rollouts"
    assert tokens[4]["title"].endswith("64 rollouts, 2 more not to be judged")
    assert "−0.58 [−0.70, −0.40]" in page.text
    assert "against 7 p after it 0.97 [0.87, 1.00], 128 rollouts" in " ".join(page.text.split())
    assert "95 % intervals, right at" in " ".join(page.text.split())
    assert "5 searched, 3 too hard, 1 without a whole answer" in page.text
    assert "1 of 1 answer with a confirmed pivot" in " ".join(page.text.split())
    assert page.open == []
    tables = json.loads((tmp_path / "out" / "tables.json").read_text("utf-8"))
    assert tables["pivotal"][0]["of"] == 2


def test_tokens_without_a_shape_get_one_and_an_unknown_p_has_no_colour(store: Path):
    lines = [ANSWER | {"points": [{"after": 0, "p_n": 0.0}, {"after": 4, "p_n": 0.0, "p_unknown": 64.0}]}]
    write_lines(store / "trajectories.jsonl", lines)
    (view,) = pivotal_views([Artifact(store, {"kind": "pivotal", "summary": {"questions": 1}})])
    (answer,) = view["answers"]
    assert answer["start"] is None
    assert [t["text"] for t in answer["tokens"]][1::2] == ["⏎\n", "■"]
    assert [t["p"] for t in answer["tokens"]] == [None, None, 0.02, None]


@pytest.mark.parametrize(
    ("pair", "told"),
    [("confirmed", "against"), ("refuted", "no pair with"), ("undecided", "not clear against")],
)
def test_what_became_of_the_pair_is_told(store: Path, tmp_path: Path, pair: str, told: str):
    write_lines(store / "trajectories.jsonl", [ANSWER | {"pivots": [ANSWER["pivots"][0] | {"pair": pair}]}])
    text = " ".join(Page(build([store], tmp_path / "out").read_text("utf-8")).text.split())
    assert re.search(rf"128 rollouts ?{told} 7 p after it 0.97", text)


def test_a_token_has_the_p_after_the_stretch_it_is_in(store: Path):
    write_lines(store / "trajectories.jsonl", [ANSWER | {"pivots": [ANSWER["pivots"][0] | {"at": 0}]}])
    (view,) = pivotal_views([Artifact(store, {"kind": "pivotal", "summary": {"questions": 1}})])
    (answer,) = view["answers"]
    assert answer["start"]["p"] == 0.5
    assert [t["p"] for t in answer["tokens"]] == [0.02, 0.6, 0.0, 0.0]  # after 2 tokens 0.6, after 4 none


def test_a_search_that_found_nothing_says_so(store: Path, tmp_path: Path):
    write_lines(store / "trajectories.jsonl", [ANSWER | {"pivots": []}])
    text = " ".join(Page(build([store], tmp_path / "out").read_text("utf-8")).text.split())
    assert "No pivotal token was confirmed in 1 answer." in text
