"""Runs that go wrong: failing steps, cuts, damage, a full disk, two at once."""

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
from flow_fakes import RAN, cheap_collections, in_memory  # noqa: F401
from flow_runs import TEXT, fresh_store, plan, rows, run  # noqa: F401

from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.common.manifest import read_manifest
from posttrain.common.step import Step, StepContext
from posttrain.flow import artifact, runner
from posttrain.flow.artifact import check_artifact
from posttrain.flow.runner import StepFailed
from posttrain.flow.store import Store


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
    said: list[str] = []
    done = run(store, say=said.append)["a"]
    assert any("unfinished.json is missing or damaged" in line for line in said)
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
