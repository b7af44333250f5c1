"""Evaluations that are damaged: a gate says which file, and never decides by what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.evaluation.gate import GateConfig
from posttrain.evaluation.gate_evidence import gather
from posttrain.flow.recipe import check_recipe
from posttrain.flow.source import parse_yaml

VALUES = {"old": [0.25, 0.5, None], "new": [0.5, 0.75, 1.0]}


def line(model: str, item: int, **fields: Any) -> dict[str, Any]:
    value = VALUES[model][item]
    return {
        "model": model, "task": "t", "item": f"{item}", "cluster": f"c{item}",
        "metrics": {"good": value}, "weights": {}, **fields,
    }  # fmt: skip


def summary(**fields: Any) -> dict[str, Any]:
    task = {"label": "t", "headline": "good", "metrics": ["good"], "lower_is_better": []}
    counts = [
        {"model": model, "task": "t", "metric": "good", "group": "", "n": n, "missing": 3 - n}
        for model, n in (("old", 2), ("new", 3))
    ]
    models = [{"name": name, "path": name} for name in VALUES]
    return {"models": models, "tasks": [task], "estimates": counts, **fields}


def gate(folder: Path, told: Any = None, lines: list[Any] | None = None) -> Any:
    if lines is None:
        lines = [line(model, item) for model in VALUES for item in range(3)]
    (folder / "summary.json").write_text(json.dumps(summary() if told is None else told))
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    fields = {"evaluation": str(folder), "candidate": "new", "incumbent": "old"}
    return gather(parse(GateConfig, fields, "test"))


def test_a_whole_one_is_read(tmp_path):
    found = gate(tmp_path)
    assert (found.difference.mean, found.difference.n, found.difference.missing) == (0.25, 2, 1)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "no list of 'models'"),
        ([], "expected an object"),
        (summary(models=5), "no list of 'models'"),
        (summary(tasks=[]), "no list of 'tasks'"),
        (summary(tasks=["t"]), "no list of 'tasks'"),
        (summary(tasks=[{"label": "t"}]), "one of its 'tasks' has no 'headline'"),
        (summary(models=[{"name": "old"}]), "one of its 'models' has no 'path'"),
        (summary(estimates=[{}]), "one of its 'estimates' has no 'model'"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path, told, says):
    with pytest.raises(DataError, match=rf"summary\.json: {says}"):
        gate(tmp_path, told)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({}, r"results\.jsonl, line 6: no result of an item \(KeyError: 'model'\)"),
        ([], r"line 6: no result"),
        (line("new", 2, metrics=None), r"line 6: no result"),
        (line("new", 2, metrics={"good": float("nan")}), r"line 6: .*good is nan"),
        (line("new", 2, metrics={"good": "much"}), r"line 6: .*TypeError"),
        (line("new", 2, weights={"good": -1.0}), r"line 6: .*the weight of good is -1\.0"),
        (line("new", 2, weights=None), r"line 6: no result"),
    ],
)
def test_a_damaged_result_is_named_with_its_line(tmp_path, broken, says):
    lines = [line("old", 0), line("old", 1), line("old", 2), line("new", 0), line("new", 1), broken]
    with pytest.raises(DataError, match=f"{says}.*run the evaluation again"):
        gate(tmp_path, lines=lines)


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_results_that_were_cut_off_are_not_judged_by(tmp_path, kept):
    lines = [line(model, item) for model in VALUES for item in range(3)]
    with pytest.raises(DataError, match=r"results\.jsonl: .*and summary\.json counts"):
        gate(tmp_path, lines=lines[:kept])


def test_a_task_that_applies_to_neither_is_no_damage(tmp_path):
    found = gate(tmp_path, summary(estimates=[]), [])
    assert found.difference.mean is None


def test_a_gate_between_a_model_and_itself_is_refused_before_anything_runs():
    text = "g: {do: gate, evaluation: e, candidate: some/model, incumbent: some/model}\n"
    with pytest.raises(ConfigError, match=r"candidate and incumbent are the same model \(some/model\)"):
        check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", ())
