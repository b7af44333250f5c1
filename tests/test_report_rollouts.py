"""The page about runs on sampled answers: curves, reward and gold over the KL, answers, the frontier."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_artifacts import NASTY, POLICIES, write_artifact, write_lines, write_rl_run, write_rollouts
from test_report import Page

from posttrain.common.errors import ConfigError
from posttrain.common.step import StepContext
from posttrain.report.collect import Artifact
from posttrain.report.frontier import Point, frontier
from posttrain.report.page import STEP, ReportConfig, build
from posttrain.report.rollouts import rollout_view


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    text = build([write_rl_run(folder / "store")], folder / "out").read_text("utf-8")
    return text, Page(text), json.loads((folder / "out" / "tables.json").read_text("utf-8"))


def test_curves_are_those_of_rl(built: tuple[str, Page, dict[str, Any]]):
    _, page, tables = built
    (ppo, _) = tables["curves"]
    assert [figure["metric"] for figure in ppo["figures"]] == [
        "reward", "gold", "kl", "entropy", "response_tokens", "truncated", "explained_variance", "clipped",
        "loss",
    ]  # fmt: skip
    assert {figure["metric"] for figure in ppo["more"]} >= {"length_correlation", "sampling_seconds"}
    assert "rollout" not in {figure["metric"] for figure in ppo["figures"] + ppo["more"]}
    assert "KL to the reference, nats an answer" in page.text


def test_the_alarm_is_told_and_drawn(built: tuple[str, Page, dict[str, Any]]):
    text, page, tables = built
    ppo, grpo = (run["rollouts"] for run in tables["curves"])
    assert ppo["alarms"] == [49, 51, 53, 55, 57, 59]
    assert grpo["alarms"] == []
    assert "Alarm at rollouts 49, 51, 53, 55, 57, 59: gold had fallen" in page.text
    assert page.text.count("✖ alarm") == 1
    assert "var(--worse)" in text
    assert [figure["title"] for figure in ppo["figures"]] == [
        "Reward and gold reward over √KL",
        "Reward against length",
    ]
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert page.open == []


def test_answers_along_the_way_are_shown_and_cannot_act(built: tuple[str, Page, dict[str, Any]]):
    text, page, tables = built
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in text
    answers = tables["curves"][0]["rollouts"]["answers"]
    assert [row["rollout"] for row in answers["rows"]] == [1, 6, 12, 17, 22, 28, 33, 39, 44, 49, 55, 60]
    assert answers["of"] == 60
    assert {row["gold"] for row in answers["rows"] if row["rollout"] % 2 == 0} == {"–"}


def test_no_answer_of_the_gold_judge_is_said_and_no_number(tmp_path: Path):
    line = {"prompt": "a", "response": NASTY, "reward": 0.5, "finish": "length", "tokens": 3}
    lines = [line | {"rollout": 1, "gold": None}, line | {"rollout": 2}, line | {"rollout": 3, "gold": -0.25}]
    write_lines(tmp_path / "samples.jsonl", lines)
    view = rollout_view(Artifact(tmp_path, {}), "x")
    assert view is not None
    assert [row["gold"] for row in view["answers"]["rows"]] == ["no answer", "–", "−0.25"]
    assert all(row["cut"] for row in view["answers"]["rows"])
    assert view["figures"] == []  # too few answers and no checks


def test_without_a_kl_gold_stands_over_the_rollouts(tmp_path: Path):
    checks = [{"rollout": r, "proxy": r / 2, "gold": 1 / r, "alarm": 0.0} for r in (1, 3, 5)]
    write_lines(tmp_path / "monitor.jsonl", [*checks, {"rollout": 7, "gold_no_answer": 1.0, "alarm": 0.0}])
    view = rollout_view(Artifact(tmp_path, {}), "x")
    assert view is not None
    (figure,) = view["figures"]
    assert figure["title"] == "Reward and gold reward over the rollouts"
    assert "✖ alarm" not in [key["text"] for key in figure["keys"]]


def test_a_run_that_sampled_nothing_has_no_such_part(tmp_path: Path):
    assert rollout_view(Artifact(tmp_path, {}), "x") is None


def test_an_unfinished_run_has_its_page(tmp_path: Path):
    write_rollouts(tmp_path / "run", 6, hacked=False)
    assert "Reward and gold reward over √KL" in build([tmp_path / "run"], tmp_path / "out").read_text("utf-8")


def test_the_frontier_holds_every_policy_and_best_of_n(built: tuple[str, Page, dict[str, Any]]):
    text, page, tables = built
    found = tables["evaluations"][0]["frontier"]
    assert [point["name"] for point in found["points"]] == list(POLICIES)
    summary_row = next(row for row in tables["evaluations"][0]["stages"]["rows"] if row["model"] == "rloo")
    rloo = next(point for point in found["points"] if point["name"] == "rloo")
    judged, kl, _ = summary_row["cells"]
    assert (rloo["x"], rloo["x_low"], rloo["y"], rloo["y_high"]) == (
        kl["mean"], kl["low"], judged["mean"], judged["high"],
    )  # fmt: skip
    assert [(b["n"], b["x"]) for b in found["best_of_n"]] == [
        (n, pytest.approx(math.log(n) - (n - 1) / n)) for n in (1, 2, 4, 8, 16)
    ]
    for name in ("grpo", "ppo", "dpo", "rloo", "kto", "best of 16"):  # variants share a name
        assert page.text.count(f"\n{name}\n") or f">{name}<" in text, name


def evaluation(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((write_rl_run(tmp_path / "store") / "summary.json").read_text("utf-8"))
    return found


def test_best_of_n_by_another_judge_or_of_another_model_is_left_out(tmp_path: Path):
    for field, value in (("gold", {"name": "another"}), ("path", "../dpo.s0")):
        summary = evaluation(tmp_path)
        if field == "gold":
            next(t for t in summary["tasks"] if t["name"] == "best_of_n")["settings"]["gold"] = value
        else:
            next(m for m in summary["models"] if m["name"] == "sft")["path"] = value
        found = frontier(summary, [summary], [], None, "x")
        assert found is not None
        assert found["best_of_n"] == []


def test_a_playground_task_is_known_by_its_name(tmp_path: Path):
    summary = evaluation(tmp_path)
    task = next(t for t in summary["tasks"] if t["name"] == "judged")
    task["name"] = "playground/oracle"
    del task["settings"]["judge"]
    found = frontier(summary, [summary], [], None, "x")
    assert found is not None
    assert len(found["best_of_n"]) == 5


def test_which_task_is_set_against_the_kl_can_be_said(tmp_path: Path):
    summary = evaluation(tmp_path)
    assert frontier(summary, [summary], [], "judged", "x") is not None
    cfg = ReportConfig(inputs=(str(tmp_path / "store/frontier-cc33cc33cc33"),), frontier="atlas")
    with pytest.raises(ConfigError, match="holds the task 'kl' and one labelled 'atlas'"):
        STEP.run(cfg, StepContext(tmp_path / "out", tmp_path / "state", "page"))
    without = {**summary, "tasks": [t for t in summary["tasks"] if t["name"] != "kl"]}
    assert frontier(without, [summary], [], None, "x") is None


def test_what_is_neither_better_nor_worse_is_told_as_more_or_less(built: tuple[str, Page, dict[str, Any]]):
    _, _, tables = built
    said = {v["after"]: {c["task"]: c["said"] for c in v["changes"]} for v in tables["verdicts"]}
    assert said["hacked"] == {"Oracle's score": "worse on", "KL to the reference": "more of"}
    assert said["kto"]["KL to the reference"] == "less of"
    assert said["dpo.s1"]["KL to the reference"] == "no difference seen on"


def test_a_point_without_an_interval_is_drawn(tmp_path: Path):
    from posttrain.report.frontier import draw

    point = Point("one", -0.01, None, None, 0.5, None, None)
    assert "<svg" in draw([point], [], {"one": ["one"]}, "score", "x")


def test_the_step_draws_the_same_twice(tmp_path: Path):
    folder = write_artifact(tmp_path / "ppo-0123456789ab", "train", {}, 1.0, {"method": "ppo"}, {})
    write_rollouts(folder, 12, hacked=True)
    cfg = ReportConfig(inputs=(str(folder),))
    for name in ("a", "b"):
        STEP.run(cfg, StepContext(tmp_path / name, tmp_path / "state", "page"))
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()
