"""Settings and rows that were taken and went wrong later: each is refused where it is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.common.chunks import keep_sealed, read_sealed
from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.evaluation.suite import _measure
from posttrain.feedback.choose import ChooseConfig
from posttrain.formats import Rejects, read_records, read_rows
from posttrain.sandbox.limits import Limits
from posttrain.training.online_config import OnlineConfig


@pytest.mark.parametrize("field", ["truncated", "end_penalty", "min_gap", "good_above"])
def test_a_reward_that_overflows(field: str) -> None:
    given: dict[str, Any] = {"prompts": "p", "judge": "exact_match", field: 1e300}
    if field == "end_penalty":
        given["truncated"] = "judge"
    with pytest.raises(ConfigError, match=rf"'{field}'.*beyond ±1e\+15"):
        parse(OnlineConfig, given, "online")
    parse(OnlineConfig, {**given, field: 1e15}, "online")


def test_disagreement_takes_log_odds() -> None:
    ensemble = {"name": "reward_ensemble", "models": ["some/model"]}
    given = {"data": "d", "n": 1, "strategy": "disagreement", "judge": ensemble}
    with pytest.raises(ConfigError, match="set normalise: false in the judge"):
        parse(ChooseConfig, given, "choose")
    parse(ChooseConfig, {**given, "judge": {**ensemble, "normalise": False}}, "choose")
    parse(ChooseConfig, {**given, "strategy": "near_ties"}, "choose")


@pytest.mark.parametrize(
    "given", [{"cpu": 10**30}, {"wall": 1e9}, {"memory": 10**15}, {"file": 10**15}, {"scratch": 10**15}]
)
def test_limits_that_no_kernel_knows(given: dict[str, Any]) -> None:
    """They ended in an OverflowError, or in "the sandbox does not work on this machine"."""
    with pytest.raises(ConfigError, match=rf"'{next(iter(given))}': input should be less than or equal to"):
        parse(Limits, given, "limits")


@pytest.mark.parametrize("references", ["Paris", "[]", '{"a": "b"}', "[1]", '["a", null]'])
def test_references_that_are_no_list_of_texts(tmp_path: Path, references: str) -> None:
    asked = {"messages": [{"role": "user", "content": "?"}], "tags": {"references": references}}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"kind": "prompt", "provenance": {"id": "p"}, **asked}) + "\n")
    with pytest.raises(DataError, match="references: expected a JSON list of texts"):
        read_records(path)
    with Rejects(tmp_path / "rejected.jsonl") as rejects:
        assert list(read_rows(path, rejects=rejects)) == []
    assert rejects.rejected == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-20],
        lambda whole: whole.replace(b"1", b"2", 1),
        lambda whole: whole.split(b"\n", 1)[1],
        lambda whole: b"",
        lambda whole: b"\xff\x00" + whole,
        lambda whole: b'{"item": 1}\n',
    ],
)
def test_damaged_outcomes_of_a_killed_evaluation_are_told(tmp_path: Path, damage: Any) -> None:
    kept = tmp_path / "0-0.jsonl"
    lines = [b'{"item": "1"}\n', b'{"item": "3"}\n']
    keep_sealed(kept, lines)
    assert read_sealed(kept) == lines
    kept.write_bytes(damage(kept.read_bytes()))
    with pytest.raises(StoreError, match="damaged or of another version; delete that file"):
        read_sealed(kept)


def test_evaluate_says_which_file_is_damaged(tmp_path: Path) -> None:
    use: Any = SimpleNamespace(task=SimpleNamespace(applicable=lambda kind: True))
    context: Any = None
    (tmp_path / "0-0.jsonl").write_text('{"item": "1", "clus')
    with pytest.raises(StoreError, match=r"0-0\.jsonl, which an interrupted run has left, is damaged"):
        _measure(use, context, "policy", tmp_path / "0-0.jsonl")
