"""What the terminal shows of a finished step: an evaluation's headlines, and RL's first and last rollout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli.output import show_result
from posttrain.cli.results import show_results


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The table's cells, which two blanks or more hold apart."""
    show_results(folder)
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_an_evaluation_shows_its_headlines_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"model": "sft", "task": "sums", "metric": "correct", "group": "", "n": 9, "missing": 1}
    estimates = [
        found | {"mean": 0.52345, "low": 0.4, "high": 0.65},
        found | {"mean": 7.0, "low": 6.0, "high": 8.0, "metric": "tokens"},
        found | {"mean": 0.1, "low": 0.0, "high": 0.2, "group": "hard"},
        found | {"mean": None, "low": None, "high": None, "model": "dpo", "n": 0, "missing": 10},
    ]
    summary = {
        "level": 0.95,
        "tasks": [{"label": "sums", "headline": "correct"}],
        "estimates": estimates,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert shown(tmp_path, capsys) == [
        ["task", "metric", "model", "mean", "95% interval", "items", "no answer"],
        ["sums", "correct", "sft", "0.5234", "0.4 … 0.65", "9", "1"],
        ["sums", "correct", "dpo", "–", "–", "0", "10"],
    ]


def test_reinforcement_learning_shows_its_first_and_last_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"rollout": 1.0, "reward": 0.1, "reward_std": 1, "reward_short": 2.0, "kl": -0.0, "gold": 0.5},
        {"rollout": 2.0, "reward": 0.2, "reward_std": 1, "reward_short": 3.0, "kl": 1.5, "gold": 0.25},
        {"rollout": 3.0, "reward": 0.3, "reward_std": 1, "reward_short": 4.0, "kl": 2.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shown(tmp_path, capsys) == [
        ["rollout 1", "rollout 3"],
        ["reward", "0.1", "0.3"],
        ["reward, short", "2", "4"],
        ["gold score", "0.5", "0.25"],
        ["KL, nats an answer", "0", "2.5"],
    ]


def test_other_steps_show_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(tmp_path, capsys) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert shown(tmp_path, capsys) == []


def test_a_summary_is_shown_with_all_that_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {f"class {i}": 1000 + i for i in range(10)}
    summary = {
        "questions": 9,
        "share": 0.123456789,
        "usd": None,
        "states": {"kept": 5, "hard": 4, "mean": None},
        "aspects": ["accuracy", "style"],
        "no_answer_reasons": {},
        "classes": classes,
        "calibration": {"style": {"pairs": 20, "map": [{"confidence": 0.6}, {"confidence": 1.0}]}},
    }
    show_result(tmp_path, summary)
    assert capsys.readouterr().out.splitlines() == [
        "questions                9",
        "share                    0.123457",
        "usd                      -",
        "states                   kept 5, hard 4, mean -",
        "aspects                  accuracy, style",
        "no_answer_reasons        none",
        "classes",
        *(f"  {name}                {n}" for name, n in classes.items()),
        "calibration",
        "  style                  pairs 20, map 2, listed in manifest.json",
        str(tmp_path),
    ]
