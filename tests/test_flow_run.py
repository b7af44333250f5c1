"""Running recipes: hits, resuming, forcing, failing, waiting, damage, a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flow_fakes
import pytest
from flow_fakes import RAN, VERBS, cheap_collections, in_memory  # noqa: F401

from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.common.manifest import ancestry, read_manifest
from posttrain.common.step import Step, StepContext
from posttrain.flow import artifact, runner
from posttrain.flow.artifact import check_artifact
from posttrain.flow.fingerprint import key_of
from posttrain.flow.plan import Planned, make_plan
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.runner import Done, StepFailed, run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store

TEXT = """
a: {do: make, text: x, n: 3}
b: {do: join, inputs: ["@a", "@a/rows.txt"]}
c: {do: join, inputs: "@b", weight: 2}
"""


@pytest.fixture
def store(memory_path: Path) -> Store:
    RAN.clear()
    return Store(memory_path / "store")


def recipe(text: str = TEXT, *sets: str) -> Recipe:
    return check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", sets, VERBS)


def run(store: Store, text: str = TEXT, *sets: str, **options: Any) -> dict[str, Done]:
    return {done.name: done for done in run_recipe(recipe(text, *sets), store, **options)}


def plan(store: Store, text: str = TEXT, *sets: str) -> dict[str, Planned]:
    return {planned.name: planned for planned in make_plan(recipe(text, *sets), store)}


def rows(done: Done) -> str:
    return (done.folder / "rows.txt").read_text()


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


def test_a_failed_step_is_named_and_what_was_done_is_kept(store: Store) -> None:
    text = TEXT + 'd: {do: make, fail: true}\ne: {do: join, inputs: "@d"}\n'
    with pytest.raises(StepFailed, match="step 'd' failed: the data is bad; mend it") as e:
        run(store, text)
    assert e.value.step == "d"
    assert isinstance(e.value.__cause__, DataError)
    assert [p.status for p in plan(store, text).values()] == ["hit", "hit", "hit", "resume", "run"]
    events = store.events()
    assert [event["event"] for event in events] == ["start"] + ["step"] * 4
    assert [event.get("outcome") for event in events[1:]] == ["run", "run", "run", "failed"]
    assert events[-1]["error"] == "the data is bad; mend it"
    assert events[0]["steps"]["a"] == events[1]["key"]


def test_nothing_runs_where_an_input_is_missing(store: Store) -> None:
    text = TEXT + "d: {do: join, inputs: [none.txt]}\ne: {do: make, source: gone.txt}\n"
    with pytest.raises(ConfigError) as e:
        run(store, text)
    assert [line.partition(" (")[0] for line in str(e.value).splitlines()] == [
        "r.yaml: d.inputs.0: 'none.txt': no such file or folder",
        "r.yaml: e.source: 'gone.txt': no such file or folder",
    ]
    assert RAN == []


def test_a_file_that_the_artifact_does_not_have(store: Store) -> None:
    with pytest.raises(
        StepFailed, match=r"@a/other\.txt: the artifact has no such file \(it has: rows\.txt\)"
    ):
        run(store, TEXT.replace("@a/rows.txt", "@a/other.txt"))


def test_a_run_goes_on_where_it_was_cut_short(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g: {do: grind, links: 6}"
    whole = run(store, text.replace("links: 6", "links: 6, pause: 0.0"))["g"]
    expected = {p.name: p.read_bytes() for p in (whole.folder / "deep").iterdir()}
    shutil.rmtree(store.root)
    slept = 0

    def stop(seconds: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(flow_fakes.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run(store, text)
    found = plan(store, text)["g"]
    assert (found.status, found.why) == ("resume", ("a run of it was cut short",))
    assert len(list((found.folder / "state").glob("link-*"))) == 4
    before = {path: path.stat().st_mtime_ns for path in (found.folder / "state").glob("link-*")}
    (found.folder / "deep").mkdir()
    (found.folder / "deep" / ".0.bin.abc.tmp").write_text("half of a write")
    checked = []
    monkeypatch.setattr(
        runner, "make", lambda folder, order: checked.append(before) or artifact.make(folder, order)
    )
    done = run(store, text)["g"]
    assert done.outcome == "resumed"
    assert slept == 4 + 2 + 60, "six links, of which four were there, and three files of twenty pieces"
    assert {p.name: p.read_bytes() for p in (done.folder / "deep").iterdir()} == expected
    assert {p.name for p in done.folder.iterdir()} == {"deep", "0.txt", "1.txt", "2.txt", "manifest.json"}
    assert read_manifest(done.folder)["resumed"] == 1
    assert [event.get("outcome") for event in store.events()][1::2] == ["interrupted", "resumed"]


def test_runtime_fields_may_change_between_the_parts_of_a_run(store: Store) -> None:
    assert plan(store, "g: {do: grind, pause: 1}")["g"].key == plan(store, "g: {do: grind}")["g"].key


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "rows.txt").unlink(), "is missing"),
        (lambda folder: (folder / "rows.txt").write_text("longer"), "has 6 bytes instead of 3"),
        (lambda folder: (folder / "manifest.json").write_text("{half"), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is damaged"),
    ],
)
def test_a_damaged_artifact_is_never_taken(store: Store, damage: Any, says: str) -> None:
    folder = run(store)["a"].folder
    damage(folder)
    with pytest.raises((StepFailed, StoreError)) as e:
        run(store)
    assert says in str(e.value)
    assert f"delete the folder {folder}" in str(e.value) or f"delete {folder}" in str(e.value)
    shutil.rmtree(folder)
    assert rows(run(store)["a"]) == "xxx"


def test_a_changed_byte_is_found_by_reading(store: Store) -> None:
    folder = run(store)["a"].folder
    (folder / "rows.txt").write_text("xxy")
    check_artifact(folder)
    with pytest.raises(StoreError, match="is not what was written"):
        check_artifact(folder, full=True)


def test_a_finished_artifact_is_tidied_where_a_kill_left_its_state(store: Store) -> None:
    folder = run(store)["a"].folder
    (folder / "state").mkdir()
    (folder / "unfinished.json").write_text("{}")
    assert run(store)["a"].outcome == "hit"
    assert {p.name for p in folder.iterdir()} == {"rows.txt", "manifest.json"}


def test_leavings_that_nobody_can_resume_are_not_taken_over(store: Store) -> None:
    folder = run(store)["a"].folder
    (folder / "manifest.json").unlink()
    (folder / "stray.txt").write_text("of another time")
    done = run(store)["a"]
    assert done.outcome == "run"
    assert {p.name for p in done.folder.iterdir()} == {"rows.txt", "manifest.json"}


def test_inputs_that_change_between_plan_and_run_are_noticed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")

    def join_and_change(cfg: flow_fakes.JoinConfig, ctx: StepContext) -> dict[str, Any]:
        summary = flow_fakes.join(cfg, ctx)
        data.write_text("another")
        return summary

    changing = Step("join", flow_fakes.JoinConfig, join_and_change, version=2)
    monkeypatch.setattr(flow_fakes, "JOIN", changing)
    text = f"d: {{do: join, inputs: {data}}}"
    with pytest.raises(StepFailed, match=r"data\.txt changed after its content was read for the key"):
        run(store, text)
    assert store.folders() == []


def test_numbers_that_are_none_do_not_lose_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def odd(cfg: flow_fakes.MakeConfig, ctx: StepContext) -> dict[str, Any]:
        (ctx.out / "rows.txt").write_text("x")
        return {"nan": float("nan"), "list": [np.float32(0.5), np.int64(3)], "path": Path("p"), 3: (1,)}

    monkeypatch.setattr(flow_fakes, "MAKE", Step("make", flow_fakes.MakeConfig, odd))
    folder = run(store, "a: {do: make}")["a"].folder
    assert read_manifest(folder)["summary"] == {"nan": None, "list": [0.5, 3], "path": "p", "3": [1]}


def _full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["step", "manifest", "words"])
def test_a_full_disk_is_a_clear_error_and_the_store_stays_sound(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "manifest":
        monkeypatch.setattr(os, "fsync", _full)
    else:
        told = _full if where == "step" else _tell_full
        monkeypatch.setattr(flow_fakes, "MAKE", Step("make", flow_fakes.MakeConfig, told))
    with pytest.raises(StepFailed, match=r"no space left on the disk while writing .*finished work is kept"):
        run(store)
    monkeypatch.undo()
    assert not list(store.root.glob("*/manifest.json"))
    assert rows(run(store)["c"]) == "2(1(xxx+xxx))"


def _tell_full(cfg: Any, ctx: StepContext) -> dict[str, Any]:
    raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")


@contextlib.contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    text = "a: {do: make, text: x, n: 20000}\nb: {do: make, text: y, n: 300000}\n"
    with _small_disk(tmp_path / "disk", "256k") as disk:
        store = Store(disk / "store")
        with pytest.raises(StepFailed, match="step 'b' failed: no space left on the disk"):
            run(store, text)
        assert run(store, text.splitlines()[0])["a"].outcome == "hit"
        check_artifact(run(store, text.splitlines()[0])["a"].folder, full=True)
        assert not list(disk.glob("store/b-*/manifest.json"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert rows(run(store, text)["b"]) == "y" * 300000


def _child(root: Path, text: str, sets: tuple[str, ...], told: Any) -> None:
    lines: list[str] = []
    run(Store(root), text, *sets, say=lines.append)
    told.put((os.getpid(), lines))


def test_two_runs_share_a_store_and_the_second_waits(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    told: Any = context.Queue()
    text = "g: {do: grind, links: 20, pause: 0.02}\nh: {do: grind, seed: other, links: 1}"
    both = [context.Process(target=_child, args=(store.root, text, (), told)) for _ in range(2)]
    both[0].start()
    deadline = time.monotonic() + 20
    while not list(store.root.glob("g-*/unfinished.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    both[1].start()
    said = dict(told.get(timeout=60) for _ in both)
    for process in both:
        process.join(timeout=20)
        assert process.exitcode == 0
    first, second = said[both[0].pid], said[both[1].pid]
    assert f"[1/2] g: waiting for process {both[0].pid} on " in second[0]
    assert "which is making 'g'" in second[0]
    assert any(line.startswith("[1/2] g: hit g-") for line in second)
    assert not any("waiting" in line for line in first if "] g" in line)
    outcomes = [(e["step"], e["outcome"]) for e in store.events() if e["event"] == "step"]
    assert sorted(o for s, o in outcomes if s == "g") == ["hit", "run"]


def test_the_lock_of_a_killed_run_does_not_block(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    text = "g: {do: grind, links: 2000, pause: 0.01}"
    killed = context.Process(target=_child, args=(store.root, text, (), context.Queue()))
    killed.start()
    deadline = time.monotonic() + 20
    while not list(store.root.glob("g-*/state/link-3")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    lines: list[str] = []
    done = run(store, text.replace("0.01", "0"), say=lines.append)["g"]
    assert done.outcome == "resumed"
    assert lines[0].startswith("[1/1] g: resuming in ")


def test_the_log_survives_a_line_that_was_cut_off(store: Store) -> None:
    store.log({"a": 1})
    with open(store.root / "runs.jsonl", "a") as f:
        f.write('{"cut": ')
    store.log({"b": 2})
    assert store.events() == [{"a": 1}, {"b": 2}]
    assert json.loads((store.root / "runs.jsonl").read_text().splitlines()[-1]) == {"b": 2}
