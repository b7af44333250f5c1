"""The gate: hand-derived verdicts on evaluations of real folders, and the model that goes on."""

from __future__ import annotations

import html
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import tiny_folder

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, TrainingError
from posttrain.common.step import StepContext
from posttrain.evaluation.gate import STEP, GateConfig
from posttrain.evaluation.suite import EvaluateConfig
from posttrain.evaluation.suite import run as evaluate
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.flow.recipe import check_recipe
from posttrain.flow.runner import StepFailed, run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store
from posttrain.models.load import load_model
from posttrain.report.page import build


class Told(TaskConfig):
    """The outcomes that a model's folder has written down in told.json: {item: value}."""

    headline: ClassVar[str] = "good"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"bad"})
    undirected: ClassVar[frozenset[str]] = frozenset({"odd"})

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        told = json.loads((Path(ctx.model_path) / "told.json").read_text())
        return [Outcome(item, f"prompt {item}", {"good": v, "bad": v, "odd": v}) for item, v in told.items()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("new", "old")):
        tiny_folder("qwen2", folder / name, seed=seed)
    return folder


def scored(models: Path, out: Path, new: list[float | None], old: list[float | None]) -> Path:
    """An evaluation of both models; item i is the i-th value, and one that is `...` was not asked."""
    for name, values in (("new", new), ("old", old)):
        told = {str(i): value for i, value in enumerate(values) if value is not ...}
        (models / name / "told.json").write_text(json.dumps(told))
    cfg = {
        "model": {"before": str(models / "old"), "after": str(models / "new")},
        "tasks": ["test_gate:Told"],
    }
    out.mkdir(parents=True, exist_ok=True)
    evaluate(parse(EvaluateConfig, cfg, "test"), StepContext(out, out / "state", "test"))
    return out


def gate(models: Path, evaluation: Path, out: Path, **fields: Any) -> dict[str, Any]:
    given = {
        "evaluation": str(evaluation),
        "candidate": str(models / "new"),
        "incumbent": str(models / "old"),
    }
    cfg = parse(GateConfig, given | fields, "test")
    return STEP.run(cfg, StepContext(out, out / "state", "test"))


OLD = [0.1, 0.2, 0.3, 0.4]
UP = [0.2, 0.4, 0.4, 0.6]  # differences 0.1, 0.2, 0.1, 0.2
T3 = 3.182446  # t of 3 degrees of freedom at 0.975
HALF = T3 * math.sqrt(4 / 3 * 4 * 0.05**2) / 4  # G/(G-1) of the squared shares (±0.05)/4 of four clusters


def test_a_rise_goes_on(models, tmp_path):
    said = gate(models, scored(models, tmp_path / "score", UP, OLD), tmp_path / "gate")
    assert (said["verdict"], said["goes_on"]) == ("rose", "candidate")
    found = said["difference"]
    assert found["mean"] == pytest.approx(0.15)
    assert found["low"] == pytest.approx(0.15 - HALF, abs=1e-6)
    assert found["high"] == pytest.approx(0.15 + HALF, abs=1e-6)
    assert (said["candidate"]["name"], said["incumbent"]["name"]) == ("after", "before")
    assert said["why"].startswith("good of test_gate:Told rose: after less before +0.1500 [+0.05")
    assert json.loads((tmp_path / "gate/verdict.json").read_text()) == said
    assert same_weights(tmp_path / "gate", models / "new")


def test_a_fall_leaves_the_incumbent(models, tmp_path):
    said = gate(models, scored(models, tmp_path / "score", OLD, UP), tmp_path / "gate")
    assert (said["verdict"], said["goes_on"]) == ("fell", "incumbent")
    assert said["difference"]["high"] == pytest.approx(-0.15 + HALF, abs=1e-6)
    assert same_weights(tmp_path / "gate", models / "old")


def test_a_fall_that_the_interval_does_not_see_is_one_to_the_point_rule_alone(models, tmp_path):
    """Differences -0.3, 0.2, -0.3, 0.2: mean -0.05, and an interval that holds zero."""
    score = scored(models, tmp_path / "score", [0.0, 0.4, 0.0, 0.6], [0.3, 0.2, 0.3, 0.4])
    assert gate(models, score, tmp_path / "a")["verdict"] == "held"
    assert gate(models, score, tmp_path / "b", rule="point")["verdict"] == "fell"


def test_the_level_is_that_of_the_interval(models, tmp_path):
    score = scored(models, tmp_path / "score", UP, OLD)
    half = gate(models, score, tmp_path / "gate", level=0.5)["difference"]
    t = 0.764892  # t of 3 degrees of freedom at 0.75
    assert half["high"] - half["mean"] == pytest.approx(HALF * t / T3, rel=1e-5)


def test_where_lower_is_better_a_rise_is_a_fall(models, tmp_path):
    score = scored(models, tmp_path / "score", UP, OLD)
    assert gate(models, score, tmp_path / "up", metric="bad")["verdict"] == "fell"
    score = scored(models, tmp_path / "score2", OLD, UP)
    assert gate(models, score, tmp_path / "down", metric="bad")["verdict"] == "rose"


def test_items_without_two_values_are_counted_and_too_many_say_nothing(models, tmp_path):
    """Of six items one has no value for the new model, and one only the old was asked."""
    score = scored(models, tmp_path / "score", [*UP, None, ...], [*OLD, 0.5, 0.5])
    said = gate(models, score, tmp_path / "few", max_missing=0.34)
    assert said["verdict"] == "rose"
    assert (said["difference"]["n"], said["difference"]["missing"], said["unpaired"]) == (4, 1, 1)
    assert said["difference"]["mean"] == pytest.approx(0.15)
    assert said["incumbent"]["n"] == 6
    assert "2 without two values" in said["why"]
    said = gate(models, score, tmp_path / "many")
    assert (said["verdict"], said["goes_on"]) == ("unknown", "incumbent")
    assert "33.3% of the items" in said["why"]
    none = scored(models, tmp_path / "none", [None] * 4, OLD)
    assert gate(models, none, tmp_path / "no", max_missing=1)["verdict"] == "unknown"
    one = scored(models, tmp_path / "one", [0.9], [0.1])
    assert gate(models, one, tmp_path / "1")["verdict"] == "unknown"


def test_one_and_the_same_difference_everywhere_is_what_it_is(models, tmp_path):
    score = scored(models, tmp_path / "score", [0.25, 0.5, 0.75], [0.5, 0.75, 1.0])
    assert gate(models, score, tmp_path / "gate")["verdict"] == "fell"
    score = scored(models, tmp_path / "same", OLD, OLD)
    assert gate(models, score, tmp_path / "held")["verdict"] == "held"


def test_on_fall_stop_fails_and_leaves_no_model(models, tmp_path):
    score = scored(models, tmp_path / "score", OLD, UP)
    with pytest.raises(TrainingError, match=r"fell: .* on_fall is stop.*posttrain report") as e:
        gate(models, score, tmp_path / "gate", on_fall="stop")
    assert str(score) in str(e.value)
    assert json.loads((tmp_path / "gate/verdict.json").read_text())["goes_on"] == "none"
    assert not (tmp_path / "gate/model").exists()
    assert gate(models, scored(models, tmp_path / "2", UP, OLD), tmp_path / "up", on_fall="stop")


def test_what_the_evaluation_does_not_hold_is_refused(models, tmp_path):
    score = scored(models, tmp_path / "score", UP, OLD)
    tiny_folder("qwen2", tmp_path / "third", seed=7)
    for match, fields in (
        (r"third is not among the models.*\(before, after\)", {"candidate": str(tmp_path / "third")}),
        ("same model", {"candidate": str(models / "old")}),
        ("no 'god'.*did you mean 'good'", {"metric": "god"}),
        ("task: the evaluation has no 'told'", {"task": "told"}),
        ("neither more nor less 'odd' is better", {"metric": "odd"}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            gate(models, score, tmp_path / "gate", **fields)
    with pytest.raises(DataError, match="give the folder of an `evaluate` step"):
        gate(models, models, tmp_path / "gate")


RECIPE = """
rounds:
  repeat: 2
  start: {gate: OLD}
  steps:
    score: {do: evaluate, model: {incumbent: "@previous.gate", candidate: NEW}, tasks: ["test_gate:Noted"]}
    gate: {do: gate, evaluation: "@score", candidate: NEW, incumbent: "@previous.gate"}
"""


class Noted(Told):
    """As Told, but a model within an artifact counts, too."""

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        path = Path(ctx.model_path)
        inner = path / "model" if (path / "model").is_dir() else path
        return super().evaluate(EvalContext(str(inner)))


def test_rounds_go_on_from_what_passed_and_a_moved_store_is_the_same(models, tmp_path):
    """Round 1 keeps the new model, so round 2 compares it with itself: nothing moved."""
    scored(models, tmp_path / "unused", UP, OLD)
    text = RECIPE.replace("OLD", str(models / "old")).replace("NEW", str(models / "new"))

    def run(store: Path, *sets: str) -> dict[str, Any]:
        recipe = check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", sets)
        return {done.name: done for done in run_recipe(recipe, Store(store))}

    done = run(tmp_path / "store")
    verdicts = [done[f"rounds.{i}.gate"].summary["verdict"] for i in (1, 2)]
    assert verdicts == ["rose", "held"]
    first, second = (done[f"rounds.{i}.gate"].folder / "model" for i in (1, 2))
    assert same_weights(first.parent, models / "new")
    file = "model.safetensors"
    assert os.stat(first / file).st_nlink == 1, "files of one's own are copied"
    assert os.stat(first / file).st_ino != os.stat(second / file).st_ino
    row, other = page(done["rounds.2.gate"].folder, tmp_path / "page")
    assert (row["step"], row["verdict"], row["goes_on"]) == ("rounds.1.gate", "rose", "candidate")
    assert (row["difference"], row["interval"]) == ("+0.15", "[+0.06, +0.24]")
    assert (row["incumbent"], row["candidate"]) == ("incumbent 0.25", "candidate 0.40")
    assert other["verdict"] == "held"
    (tmp_path / "store").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / done["rounds.2.gate"].folder.name)
    again = run(tmp_path / "moved")
    assert [again[f"rounds.{i}.gate"].outcome for i in (1, 2)] == ["hit", "run"]
    # the incumbent goes on from one artifact to the next: one file on the disk
    told = [*UP[:2], None, None]
    (models / "new/told.json").write_text(json.dumps(dict(enumerate(told))))
    kept = run(tmp_path / "fresh")
    assert kept["rounds.2.gate"].summary["verdict"] == "unknown"
    first, second = (kept[f"rounds.{i}.gate"].folder / "model" for i in (1, 2))
    assert os.stat(first / file).st_ino == os.stat(second / file).st_ino
    assert same_weights(second.parent, models / "old")


def test_a_stop_ends_the_run_and_keeps_what_was_made(models, tmp_path):
    scored(models, tmp_path / "unused", OLD, UP)
    text = RECIPE.replace("OLD", str(models / "old")).replace("NEW", str(models / "new"))
    text = text.replace("gate: {do: gate,", "gate: {do: gate, on_fall: stop,")
    recipe = check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", ())
    with pytest.raises(StepFailed, match=r"'rounds.1.gate' failed: good of"):
        run_recipe(recipe, Store(tmp_path / "store"))
    (score,) = (tmp_path / "store").glob("*score-*")
    assert (score / "manifest.json").is_file()
    assert not list((tmp_path / "store").glob("*gate-*/manifest.json"))


def page(gate: Path, out: Path) -> list[dict[str, Any]]:
    """The rows about gates of the page on this one, which its text shows, too."""
    text = build([gate], out).read_text()
    rows = json.loads((out / "tables.json").read_text())["gates"]
    for row in rows:
        assert row["why"] in html.unescape(text)
        assert row["interval"] in text
    return rows


def same_weights(artifact: Path, model: Path) -> bool:
    """Whether the artifact's model can be loaded and is that one, file for file."""
    kept, there = load_model(artifact, dtype=torch.float32), load_model(model, dtype=torch.float32)
    names = {p.name for p in (artifact / "model").iterdir()}
    assert names == {p.name for p in model.iterdir()}
    return all(
        torch.equal(a, b)
        for a, b in zip(kept.hf.state_dict().values(), there.hf.state_dict().values(), strict=True)
    )
