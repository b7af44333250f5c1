"""The table of methods: which models are seeds of one step, intervals and ranges, best of n beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_artifacts import Best, Distance, Judged, write_artifact, write_lines

from posttrain.common.files import write_json
from posttrain.evaluation.compare import WILSON, Point
from posttrain.evaluation.summary import summarise
from posttrain.evaluation.task import Outcome
from posttrain.evaluation.tasks import TaskUse
from posttrain.report.collect import Artifact, collect
from posttrain.report.families import families
from posttrain.report.methods import SCORE, _over_runs, _score_scale
from posttrain.report.page import build

SEEDS = {"ppo.s0": (0.5, 4.0), "ppo.s1": (0.6, 6.0), "ppo.s2": (0.7, 5.0)}
OTHERS = {"grpo.free": (0.2, 9.0), "grpo.priced": (0.4, 3.0)}


def write_methods(store: Path) -> Path:
    """sft, three seeds of ppo, two settings of grpo, best of two of sft; returns the evaluation's folder."""
    pairs = {"judge": {"name": "people"}, "data": "@samples"}
    write_artifact(store / "pairs-01", "judge", {}, 1.0, pairs, {"comparisons": 60, "responses": 240})
    config: dict[str, Any] = {"method": {"name": "reward"}, "data": "@pairs", "heldout": "@held", "seed": 0}
    told: dict[str, Any] = {"rows": {"kept": 60, "heldout": 236}, "models": {"policy": 11}}
    write_artifact(store / "reward-02", "train", {"@pairs": "pairs-01"}, 1.0, config, told)
    told = {"rows": {"kept": 500}, "models": {"policy": 10}, "seconds": 2.0, "peak_memory_mb": 100.0}
    write_artifact(store / "sft-03", "train", {}, 2.0, {"method": {"name": "sft"}, "seed": 0}, told)
    judge = {"name": "reward_model", "model": {"path": "@reward"}}
    for i, name in enumerate((*SEEDS, *OTHERS)):
        method = {"name": name.split(".")[0], "kl": 0.1 * (name == "grpo.priced")}
        config = {"method": method, "online": {"judge": judge}, "seed": i if name in SEEDS else 0}
        told = {"rows": {"kept": 100}, "online": {"answers": 400}, "seconds": 60.0 + i}
        told |= {"models": {"policy": 10, "judge": 11}, "peak_memory_mb": 200.0 + i}
        write_artifact(store / f"{name}-1{i}", "train", {"@reward": "reward-02"}, 60.0, config, told)
    folders = {name: store / f"{name}-1{i}" for i, name in enumerate((*SEEDS, *OTHERS))}
    samples = {"responses": 800}
    write_artifact(store / "samples-04", "sample", {}, 8.0, {}, samples)
    inputs = {f"@{name}": folder.name for name, folder in folders.items()}
    inputs |= {"@sft": "sft-03", "@samples": "samples-04", "@reward": "reward-02"}
    tasks = {"tasks": [{"name": "best_of_n", "pick": judge, "data": "@samples"}]}
    score = write_artifact(store / "score-05", "evaluate", inputs, 1.0, tasks, {})
    paths = {"sft": str(store / "sft-03"), **{name: str(folder) for name, folder in folders.items()}}
    uses = [TaskUse(name="judged", label="judged", settings=Judged())]
    uses.append(TaskUse(name="kl", label="kl", settings=Distance(reference=paths["sft"])))
    uses.append(TaskUse(name="best_of_n", label="best", settings=Best()))
    results: dict[tuple[str, str], list[Outcome] | None] = {}
    for name, (mean, kl) in {"sft": (0.4, 0.0), **SEEDS, **OTHERS}.items():
        results[name, "judged"] = [
            Outcome(f"i{i}", f"c{i}", {"score": mean + 0.1 * (-1) ** i}) for i in range(20)
        ]
        results[name, "kl"] = [Outcome(f"i{i}", f"c{i}", {"kl": kl}) for i in range(20)]
        results[name, "best"] = None
    best = {"best": 0.5, "won": 0.6, "gold@2": 0.5, "kl@2": math.log(2) - 0.5}
    results["sft", "best"] = [
        Outcome(f"i{i}", f"c{i}", {**best, "won": 0.6 + 0.1 * (-1) ** i}) for i in range(20)
    ]
    summary = summarise(uses, paths, dict.fromkeys(paths, "policy"), results)  # type: ignore[arg-type]
    write_json(score / "summary.json", summary | {"seed": 0, "limit": None})
    lines = [
        {"model": m, "task": t, **vars(o)} for (m, t), outcomes in results.items() for o in outcomes or ()
    ]
    write_lines(score / "results.jsonl", lines)
    return score


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("methods")
    score = write_methods(folder / "store")
    page = build([score], folder / "out")
    tables = json.loads((folder / "out" / "tables.json").read_text("utf-8"))
    return score, tables["evaluations"][0]["methods"], page.read_text("utf-8")


def test_only_seeds_stand_together(made: tuple[Path, dict[str, Any], str]):
    score, table, _ = made
    summary = json.loads((score / "summary.json").read_text("utf-8"))
    assert families(summary, collect([score])) == {
        "sft": ["sft"], "ppo": list(SEEDS), "grpo.free": ["grpo.free"], "grpo.priced": ["grpo.priced"],
    }  # fmt: skip
    moved = [Artifact(Path("/elsewhere") / a.folder.name, a.manifest) for a in collect([score])]
    assert list(families(summary, moved)) == ["sft", "ppo", "grpo.free", "grpo.priced"]
    assert [(row["name"], row["runs"]) for row in table["rows"]] == [
        ("sft", 1), ("best of 2", 1), ("ppo", 3), ("grpo.free", 1), ("grpo.priced", 1),
    ]  # fmt: skip


def test_seeds_have_an_interval_that_covers_them_and_their_range(made: tuple[Path, dict[str, Any], str]):
    _, table, page = made
    ppo = next(row for row in table["rows"] if row["name"] == "ppo")
    assert (ppo["score"]["mean"], ppo["score"]["runs"]) == ("0.600", "0.500 to 0.700")
    low, high = map(float, ppo["score"]["ends"].strip("[]").split(", "))
    assert (
        low < 0.5
    )  # t with two degrees of freedom over 0.5, 0.6, 0.7: 0.6 ± 4.30 · 0.1 / √3, and the prompts
    assert high > 0.7
    assert ppo["kl"] == {"mean": "5.00", "ends": "[2.52, 7.48]", "runs": "4.00 to 6.00"}
    assert ppo["wins"]["mean"] == "100.0 %"
    assert ppo["memory"] == "202 MiB"
    assert "seeds 0.500 to 0.700" in page


def test_a_seed_without_a_value_is_told():
    runs = [[Point(f"i{i}", f"c{i}", value + 0.1 * (-1) ** i) for i in range(8)] for value in (0.5, 0.7)]
    silent = [Point(f"i{i}", f"c{i}", None) for i in range(8)]
    cell = _over_runs([*runs, silent], SCORE, amount=True)
    assert cell is not None
    assert (cell["mean"], cell["runs"]) == ("0.600", "0.500 to 0.700, 1 without a value")
    assert _over_runs([silent], SCORE, amount=True) is None


def test_shares_are_percent_here_too():
    task = {"label": "sums", "headline": "correct", "units": {}}
    found = {"task": "sums", "metric": "correct", "group": "", "mean": 0.3075, "low": 0.264, "high": 0.355}
    written = _score_scale({"estimates": [{**found, "method": f"{WILSON}, 394 clusters"}]}, task)
    assert f"{written.number(0.3075)} {written.unit}" == "30.8 %"
    assert _score_scale({"estimates": [{**found, "method": "t"}]}, task) == SCORE


def test_what_each_learned_from_and_held_is_said(made: tuple[Path, dict[str, Any], str]):
    _, table, _ = made
    rows = {row["name"]: row for row in table["rows"]}
    judged = "a reward model from 60 comparisons by people"
    assert rows["ppo"]["learned_from"] == f"100 prompts, 400 of its own answers scored by {judged}"
    assert rows["ppo"]["models"] == {"names": "policy, judge", "parameters": "21 parameters"}
    assert rows["sft"]["kl"] == {"mean": "0.00", "ends": "", "runs": ""}
    best = rows["best of 2"]
    assert best["learned_from"] == f"nothing; 2 answers to each question, picked by {judged}"
    assert (best["score"]["mean"], best["kl"]["mean"], best["wins"]["mean"]) == ("0.500", "≤ 0.19", "60.0 %")
    assert best["models"] == {"names": "policy, judge", "parameters": "21 parameters"}
