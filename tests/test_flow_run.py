"""Running recipes: what is a hit, what runs, what is forced, and what a run tells of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import flow_fakes
import pytest
from flow_fakes import RAN, cheap_collections, in_memory  # noqa: F401
from flow_runs import TEXT, fresh_store, plan, rows, run  # noqa: F401

from posttrain.common.errors import ConfigError
from posttrain.common.manifest import ancestry, read_manifest
from posttrain.common.step import Step, StepContext
from posttrain.flow.fingerprint import key_of
from posttrain.flow.store import Store


def test_a_run_makes_what_is_missing_and_takes_the_rest(store: Store) -> None:
    first = run(store)
    assert [done.outcome for done in first.values()] == ["run"] * 3
    assert rows(first["c"]) == "2(1(xxx+xxx))"
    second = run(store)
    assert [done.outcome for done in second.values()] == ["hit"] * 3
    assert RAN == ["a", "b", "c"]
    third = run(store, TEXT, "c.weight=3")
    assert [done.outcome for done in third.values()] == ["hit", "hit", "run"]
    assert rows(third["c"]) == "3(1(xxx+xxx))"
    assert second["b"].summary == {"inputs": 2}


def test_the_plan_says_what_the_run_does_and_runs_nothing(store: Store) -> None:
    before = plan(store)
    assert [p.status for p in before.values()] == ["run"] * 3
    assert not store.root.exists()
    done = run(store)
    after = plan(store)
    assert {name: p.key for name, p in before.items()} == {name: d.key for name, d in done.items()}
    assert [p.status for p in after.values()] == ["hit"] * 3
    assert after["b"].folder == done["b"].folder


def test_the_plan_names_what_changed_since_the_nearest_artifact(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    text = TEXT + f"d: {{do: join, inputs: [{data}], method: {{name: beta, beta: 0.1}}}}\n"
    assert plan(store, text)["a"].why == ("new",)
    run(store, text)
    run(store, text, "d.weight=4", "d.method.rate=9")
    data.write_text("two")
    found = plan(store, text, "a.n=4", "d.weight=5")
    assert found["a"].why == ("n: 3 → 4",)
    assert found["b"].why == ("inputs.0: @a changed", "inputs.1: @a/rows.txt changed")
    assert found["c"].why == ("inputs: @b changed",)
    assert found["d"].why == (f"inputs.0: the content of {data} changed", "weight: 1.0 → 5.0")
    swapped = plan(store, text, "d.method={name: gamma}", "b.extra.x=[1]")
    assert swapped["d"].why == (
        f"inputs.0: the content of {data} changed",
        "method.class: 'flow_fakes:Beta' → 'flow_fakes:Gamma'",
        "method.name: 'beta' → 'gamma'",
        "method.teacher: None → (none)",
    )
    assert swapped["b"].why == ("extra.x.0: (none) → 1", "extra: {} → (none)")
    other = plan(store, text, f"c.inputs={data}")
    assert other["c"].why[0].startswith("inputs: ")


def test_a_new_version_of_a_step_runs_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store)
    newer = Step("join", flow_fakes.JoinConfig, flow_fakes.join, version=3)
    monkeypatch.setattr(flow_fakes, "JOIN", newer)
    found = plan(store)
    assert found["b"].why == ("version of the step: 2 → 3",)
    assert found["a"].status == "hit"


def test_the_same_step_under_another_name_is_a_hit(store: Store) -> None:
    first = run(store)
    renamed = TEXT.replace("a:", "start:").replace("@a", "@start").replace("c:", "end:")
    assert [p.status for p in plan(store, renamed).values()] == ["hit"] * 3
    second = run(store, renamed)
    assert [done.outcome for done in second.values()] == ["hit"] * 3
    assert second["end"].folder == first["c"].folder


def test_what_two_steps_share_is_computed_once(store: Store) -> None:
    text = """
a: {do: make, variants: {one: {text: x}, two: {text: x, threads: 9}, three: {text: y}}}
b: {do: join, inputs: "@a"}
"""
    found = plan(store, text)
    assert found["a.two"].why == ("the same as 'a.one'",)
    assert found["b.two"].why == ("the same as 'b.one'",)
    done = run(store, text)
    assert RAN == ["a.one", "a.three", "b.one", "b.three"]
    assert done["b.two"].folder == done["b.one"].folder


def test_the_manifest_tells_what_made_the_artifact(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    done = run(store, TEXT + f'd: {{do: join, inputs: ["@c", "{data}"]}}\n')
    found = read_manifest(done["d"].folder)
    assert (found["step"], found["kind"], found["version"], found["resumed"]) == ("d", "join", 2, 0)
    assert found["key"] == done["d"].key == key_of(found["identity"])
    assert found["config"]["inputs"] == ["@c", str(data)]
    assert found["config"]["method"] == {
        "rate": 0.5,
        "rounds": 1,
        "name": "beta",
        "beta": 0.1,
        "teacher": None,
    }
    assert found["summary"] == {"inputs": 2}
    assert list(found["files"]) == ["rows.txt"]
    assert found["files"]["rows.txt"]["bytes"] == len(rows(done["d"]))
    assert found["inputs"]["@c"] == {
        "kind": "artifact",
        "step": "c",
        "key": done["c"].key,
        "path": f"../{done['c'].folder.name}",
    }
    assert found["inputs"][str(data)]["kind"] == "path"
    assert [manifest["step"] for _, manifest in ancestry([done["d"].folder])] == ["a", "b", "c", "d"]
    moved = tmp_path / "moved"
    shutil.move(store.root, moved)
    steps = [manifest["step"] for _, manifest in ancestry([moved / done["d"].folder.name])]
    assert steps == ["a", "b", "c", "d"], "a store can be moved as a whole"


def test_force_makes_a_step_again_once(store: Store) -> None:
    first = run(store)
    marker = first["b"].folder / "rows.txt"
    marker.write_text("1(xxx+XXX)")
    RAN.clear()
    second = run(store, force=["b"])
    assert RAN == ["b"]
    assert [done.outcome for done in second.values()] == ["hit", "run", "hit"]
    assert rows(second["b"]) == "1(xxx+xxx)"
    with pytest.raises(ConfigError, match="no step 'bb'"):
        run(store, force=["bb"])
    twins = "a: {do: make, variants: {one: {text: x}, two: {text: x}}}"
    RAN.clear()
    run(store, twins, force=["a"])
    assert RAN == ["a.one"]


def test_numbers_that_are_none_do_not_lose_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def odd(cfg: flow_fakes.MakeConfig, ctx: StepContext) -> dict[str, Any]:
        (ctx.out / "rows.txt").write_text("x")
        return {"nan": float("nan"), "list": [np.float32(0.5), np.int64(3)], "path": Path("p"), 3: (1,)}

    monkeypatch.setattr(flow_fakes, "MAKE", Step("make", flow_fakes.MakeConfig, odd))
    folder = run(store, "a: {do: make}")["a"].folder
    assert read_manifest(folder)["summary"] == {"nan": None, "list": [0.5, 3], "path": "p", "3": [1]}
