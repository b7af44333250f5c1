"""Preferences and scores of other formats: which pairs they give, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from format_rows import ULTRA, one_format, said

from posttrain.records import Comparison, Rating


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
