"""The suite: every model on every task, what it tells, and configs that do not hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from evaluation_world import small_world  # noqa: F401

from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError
from posttrain.common.step import StepContext
from posttrain.evaluation.suite import EvaluateConfig, named_models, run
from posttrain.evaluation.task import EvalContext, Outcome, TaskConfig
from posttrain.flow.inputs import inputs_of


class Echo(TaskConfig):
    """Asks nothing; counts its calls, fails on demand."""

    headline: ClassVar[str] = "right"
    calls: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()

    value: float | None = 1.0
    repeat: bool = False

    def evaluate(self, ctx: EvalContext) -> list[Outcome]:
        name = Path(ctx.model_path).name
        if name in self.broken:
            raise RuntimeError("killed")
        self.calls.append(name)
        ids = ["0" if self.repeat else str(i) for i in range(3)]
        values = [None, self.value, self.value]
        return [Outcome(i, i, {"right": v}, response="\u2028") for i, v in zip(ids, values, strict=True)]


@pytest.fixture(autouse=True)
def fresh_echo():
    Echo.calls.clear()
    Echo.broken.clear()


def evaluate(world: Path, out: Path, models: Any, tasks: list[Any], **fields: Any) -> dict[str, Any]:
    given = {"precision": "float32", "device": "cpu", "model": models, "tasks": tasks, **fields}
    summary = run(parse(EvaluateConfig, given, "step 'score'"), StepContext(out, out / "state", "score"))
    return summary


def test_every_model_on_every_task(world: Path, tmp_path: Path):
    models = {name: str(world / name) for name in ("base", "sft", "reward")}
    tasks = [
        {"name": "heldout_loss", "data": str(world / "demos.jsonl"), "group_by": "level"},
        {"name": "pair_accuracy", "data": str(world / "pairs.jsonl"), "label": "pairs"},
    ]
    told = evaluate(world, tmp_path, models, tasks)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 2 * 4 + 3 * 8
    assert [(m["name"], m["kind"]) for m in summary["models"]] == [
        ("base", "policy"),
        ("sft", "policy"),
        ("reward", "reward"),
    ]
    assert summary["not_applicable"] == [{"model": "reward", "task": "heldout_loss"}]
    loss = next(e for e in summary["estimates"] if e["model"] == "sft" and e["metric"] == "loss")
    rows = [line for line in lines if line["model"] == "sft" and line["task"] == "heldout_loss"]
    tokens = sum(row["weights"]["loss"] for row in rows)
    nats = sum(row["weights"]["loss"] * row["metrics"]["loss"] for row in rows)
    assert loss["mean"] == pytest.approx(nats / tokens)  # every token weighs the same
    groups = {e["group"] for e in summary["estimates"] if e["task"] == "heldout_loss"}
    assert groups == {"", "easy", "hard"}
    against = [
        (d["before"], d["after"], d["against"])
        for d in summary["differences"]
        if d["task"] == "pairs" and d["metric"] == "accuracy"
    ]
    assert against == [
        ("base", "sft", ["first", "previous"]),
        ("base", "reward", ["first"]),
        ("sft", "reward", ["previous"]),
    ]
    assert told["items"] == 2 * 4 + 3 * 8
    assert set(told["headline"]["reward"]) == {"pairs"}


def test_the_previous_model_is_the_last_that_could_be_asked(world: Path, tmp_path: Path):
    models = {name: str(world / name) for name in ("base", "reward", "sft")}
    evaluate(world, tmp_path, models, [{"name": "heldout_loss", "data": str(world / "demos.jsonl")}])
    differences = json.loads((tmp_path / "summary.json").read_text("utf-8"))["differences"]
    assert {(d["before"], d["after"]) for d in differences} == {("base", "sft")}
    lower = next(d for d in differences if d["metric"] == "loss")
    if lower["verdict"] in ("better", "worse"):
        assert (lower["verdict"] == "better") == (lower["mean"] < 0)


def test_a_difference_is_taken_to_what_a_model_was_trained_from(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, origin, before in (
        ("one", {"three": "one"}, "one"),
        ("none", {}, "two"),
        ("later", {"two": "three"}, "two"),
    ):
        monkeypatch.setattr("posttrain.evaluation.summary.origins", lambda _, found=origin: found)
        models = {label: str(world / "base") for label in ("zero", "one", "two", "three")}
        evaluate(world, tmp_path / name, models, ["test_evaluation:Echo"])
        differences = json.loads((tmp_path / name / "summary.json").read_text("utf-8"))["differences"]
        found = {d["after"]: d["before"] for d in differences if "previous" in d["against"]}
        assert found == {"one": "zero", "two": "one", "three": before}


def test_what_a_killed_evaluation_finished_is_kept(world: Path, tmp_path: Path):
    models = [str(world / "base"), str(world / "sft")]
    tasks = ["test_evaluation:Echo"]
    Echo.broken.add("sft")
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(world, tmp_path, models, tasks)
    assert not (tmp_path / "summary.json").exists()
    Echo.broken.clear()
    evaluate(world, tmp_path, models, tasks)
    assert Echo.calls == ["base", "sft"]
    evaluate(world, tmp_path / "undisturbed", models, tasks)
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_the_third_state_reaches_the_summary(world: Path, tmp_path: Path):
    told = evaluate(world, tmp_path, str(world / "base"), ["test_evaluation:Echo"])
    (found,) = json.loads((tmp_path / "summary.json").read_text("utf-8"))["estimates"]
    assert (found["mean"], found["n"], found["missing"]) == (1.0, 2, 1)
    assert told["missing"] == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"value": math.inf}, "right of item '1' is inf"),
        ({"repeat": True}, "item '0' stands twice"),
    ],
)
def test_outcomes_that_cannot_be_averaged_are_refused(
    world: Path, tmp_path: Path, task: dict[str, Any], message: str
):
    echo = Echo.model_construct(**{"value": 1.0, "repeat": False, **task})
    cfg = EvaluateConfig(model=str(world / "base"), tasks=(echo,))
    with pytest.raises(DataError, match=message):
        run(cfg, StepContext(tmp_path, tmp_path / "state", "score"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["heldout_los"]}, "no task named 'heldout_los': did you mean 'heldout_loss'"),
        ({"tasks": [{"name": "heldout_loss"}]}, "task heldout_loss: 'data' is missing"),
        (
            {"tasks": [{"name": "pair_accuracy", "data": "x", "referense": "y"}]},
            r"unknown key 'referense' \(did you mean 'reference'\?\)",
        ),
        ({"tasks": [{"data": "x"}]}, "a task is a name or a mapping with a 'name'"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["test_evaluation:Echo", "test_evaluation:Echo"]}, "give each use its own `label`"),
        ({"tasks": ["test_evaluation:Echo"], "model": []}, "no model to evaluate"),
        ({"tasks": ["evaluation_world:QUESTIONS"]}, "is no task: a task is a Config class"),
    ],
)
def test_a_config_that_does_not_hold_says_why(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse(EvaluateConfig, {"model": "m", **given}, "step 'score'")


def test_a_misspelt_task_is_one_mistake():
    """pydantic also calls the tuple too short, since no task in it holds."""
    with pytest.raises(ConfigError) as e:
        parse(EvaluateConfig, {"model": "m", "tasks": ["heldout_los"]}, "score")
    assert str(e.value).startswith("score: 'tasks.0': no task named 'heldout_los'")
    assert ";" not in str(e.value)
    with pytest.raises(ConfigError, match=r"'tasks': .*at least 1 item"):
        parse(EvaluateConfig, {"model": "m", "tasks": []}, "score")


def test_a_config_reads_what_it_writes():
    given = {"model": {"a": "x"}, "tasks": [{"name": "pair_accuracy", "data": "d", "label": "p"}]}
    cfg = parse(EvaluateConfig, given, "")
    dumped = cfg.model_dump(mode="json")
    assert dumped["tasks"][0] == {
        "name": "pair_accuracy",
        "label": "p",
        "data": "d",
        "reference": None,
        "over": "sum",
        "group_by": "",
    }
    assert EvaluateConfig.model_validate(dumped) == cfg


def test_the_flow_sees_every_input_of_a_task():
    judge = {"name": "reward_model", "model": "@reward"}
    tasks = [
        {"name": "pair_accuracy", "data": "@pairs/heldout.jsonl", "reference": "@sft"},
        {"name": "judged", "data": "prompts.jsonl", "judge": judge},
    ]
    cfg = parse(EvaluateConfig, {"model": {"sft": "@sft"}, "tasks": tasks}, "")
    inputs = {(leaf.value, leaf.kind) for leaf in inputs_of(cfg) if leaf.kind}
    assert inputs == {
        ("@sft", "model"),
        ("@pairs/heldout.jsonl", "data"),
        ("prompts.jsonl", "data"),
        ("@reward", "model"),
    }


def test_models_get_readable_names():
    paths = ("store/sft-0123abcd4567", "store/sft-89abcdef0123/model", "org/Model-7B@0a1b2c", "./m/")
    assert list(named_models(paths)) == ["sft", "sft 2", "Model-7B", "m"]
    assert named_models({"a": "x"}) == {"a": "x"}
    assert named_models("deadbeef-model") == {"deadbeef-model": "deadbeef-model"}
