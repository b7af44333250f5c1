"""The Python API: the same verbs, the same folders, nothing imported before its time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flow_fakes
import pytest
from flow_fakes import VERBS

import posttrain
from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.common.step import Step
from posttrain.flow import api
from posttrain.flow.executors.local import LocalExecutor
from posttrain.flow.oneoff import Result
from posttrain.flow.recipe import check_recipe
from posttrain.flow.runner import Done, Job, run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store
from posttrain.flow.verbs import VERBS as REAL


def test_every_public_name_is_there_and_a_wrong_one_is_not() -> None:
    for name in posttrain.__all__:
        assert callable(getattr(posttrain, name)), name
        assert name in dir(posttrain)
    assert set(REAL) <= set(posttrain.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        posttrain.trian  # noqa: B018


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config, str, dict[str, Any]]]:
    """Each step with its parsed config and where it would go; nothing is run."""
    seen: list[tuple[str, Config, str, dict[str, Any]]] = []

    def note(step: Step, config: Config, out: Path | str, **options: Any) -> Result:
        seen.append((step.name, config, str(out), options))
        return Result(Path(out), {}, "0" * 64)

    monkeypatch.setattr(api, "run_into", note)
    return seen


def test_a_method_may_be_an_object_a_name_or_a_mapping(called: list[Any]) -> None:
    for method in (posttrain.DPO(beta=0.3), {"name": "dpo", "beta": 0.3}):
        posttrain.train(method=method, model=Path("m"), data=[Path("a"), "b"], out="o", epochs=2)
    posttrain.train(
        method="sft", model={"path": Path("m"), "lora": {"rank": 4}}, data="a", out="o", force=True
    )
    (_, first, _, _), (_, second, _, _), (_, third, _, options) = called
    assert first == second
    assert (first.method.beta, first.epochs, first.data, first.model.path) == (0.3, 2, ["a", "b"], "m")
    assert (third.method.name, third.model.lora.rank, options["force"]) == ("sft", 4, True)


def test_every_verb_builds_its_own_config(called: list[Any]) -> None:
    posttrain.curate(source="a.jsonl", out="o")
    posttrain.tokenizer(data="a.jsonl", out="o", vocab_size=1000)
    posttrain.sample(model="m", prompts="p.jsonl", out="o", n=2)
    posttrain.judge(data="s", judge={"name": "reward_model", "model": "r"}, out="o")
    posttrain.evaluate(model=["m"], tasks={"name": "heldout_loss", "data": "h"}, out="o")
    posttrain.report(inputs=Path("e"), out="o")
    assert [name for name, *_ in called] == ["curate", "tokenizer", "sample", "judge", "evaluate", "report"]
    assert called[-1][1].inputs == ("e",)


def test_a_wrong_field_is_refused_with_what_is_near(called: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"^train: unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        posttrain.train(method="sft", model="m", data="d", out="o", epoch=2)
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        posttrain.train(method="stf", model="m", data="d", out="o")
    assert not called


def test_the_verbs_that_are_functions_say_what_they_take() -> None:
    for verb in REAL:
        function = getattr(api, verb)
        assert function.__doc__
        parameters = inspect.signature(function).parameters
        assert {"out", "force"} <= set(parameters), verb
        assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters.values())


TEXT = """
a: {do: make}
b: {do: make, text: b}
c: {do: join, inputs: "@a"}
d: {do: join, inputs: ["@b", "@c"]}
"""


def test_a_recipe_runs_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_recipe, "__defaults__", ((), VERBS))
    monkeypatch.setattr(api.load_recipe, "__defaults__", ((), VERBS))
    (tmp_path / "r.yaml").write_text(TEXT)
    flow_fakes.RAN.clear()
    overrides = {"c.weight": 0.5, "c.method": {"name": "gamma"}}
    done = posttrain.run_recipe(tmp_path / "r.yaml", tmp_path / "store", overrides=overrides, only=["c"])
    assert list(done) == ["a", "c"]
    assert (done["c"].folder / "rows.txt").read_text() == "0.5(a)"
    again = posttrain.run_recipe(tmp_path / "r.yaml", tmp_path / "store", overrides=overrides, force=["c"])
    assert [(d.name, d.outcome) for d in again.values()] == [
        ("a", "hit"),
        ("b", "run"),
        ("c", "run"),
        ("d", "run"),
    ]


class LastFirst:
    """An executor that does the last job it may do: the order among independent steps is its own affair."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def run(self, jobs: Any, work: Any) -> Iterator[Done]:
        left: list[Job] = list(jobs)
        while left:
            job = next(j for j in reversed(left) if not set(j.needs) & {other.name for other in left})
            left.remove(job)
            self.order.append(job.name)
            yield work(job)


def test_the_executor_decides_when_and_not_what(tmp_path: Path) -> None:
    recipe = check_recipe(parse_yaml(TEXT, "r.yaml"), "r.yaml", (), VERBS)
    other = LastFirst()
    found = {}
    for name, executor in (("local", LocalExecutor()), ("other", other)):
        done = run_recipe(recipe, Store(tmp_path / name), executor=executor)
        found[name] = {d.name: (d.key, (d.folder / "rows.txt").read_text()) for d in done}
    assert other.order == ["b", "a", "c", "d"]
    assert found["local"] == found["other"]
