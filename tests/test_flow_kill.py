"""SIGKILL at any instant: nothing half-written is ever taken for whole, and the result is the same."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flow_fakes
import pytest
from flow_fakes import VERBS, cheap_collections, in_memory  # noqa: F401

from posttrain.common.manifest import NAME
from posttrain.flow import artifact, oneoff, store
from posttrain.flow.artifact import check_artifact
from posttrain.flow.recipe import check_recipe
from posttrain.flow.runner import run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store

PAUSE = 0.002
LONG = f"""
first: {{do: grind, links: 6, files: 2, pause: {PAUSE}}}
second: {{do: grind, links: 4, files: 1, seed: t, inputs: "@first/deep/1.bin", pause: {PAUSE}}}
third: {{do: join, inputs: ["@first/deep/0.bin", "@second/deep/0.bin"]}}
"""
SHORT = """
first: {do: grind, links: 2, files: 4}
second: {do: join, inputs: "@first/deep/0.bin"}
"""
SYSTEM_CALLS = ["replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "chmod"]


def run(root: Path, text: str, *force: str) -> dict[str, Path]:
    recipe = check_recipe(parse_yaml(text, "r.yaml"), "r.yaml", (), VERBS)
    return {done.name: done.folder for done in run_recipe(recipe, Store(root), force=force)}


def in_child(work: Callable[[], None]) -> int:
    """Fork, do `work` in the child, and return the child's process id at once."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != NAME
    }


@pytest.fixture
def instantly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_fakes.time, "sleep", lambda seconds: None)


def made(root: Path, text: str) -> dict[str, dict[str, bytes]]:
    return {name: contents(folder) for name, folder in run(root, text).items()}


def finished(root: Path) -> list[Path]:
    """Every artifact that has a manifest; each is checked byte by byte."""
    found = [folder for folder in Store(root).folders() if (folder / NAME).exists()]
    for folder in found:
        check_artifact(folder, full=True)
    return found


def test_kills_at_random_instants(memory_path: Path) -> None:
    undisturbed = made(memory_path / "whole", LONG)
    chance = random.Random(0)
    kills = 0
    for number in range(50):
        root = memory_path / str(number)
        while len(finished(root)) < 3:
            pid = in_child(lambda root=root: run(root, LONG))
            time.sleep(chance.uniform(0, 0.06))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            kills += os.WIFSIGNALED(status)
            for folder in finished(root):
                assert contents_of_artifact(folder) == undisturbed[folder.name.rpartition("-")[0]]
        assert made(root, LONG) == undisturbed
        if kills >= 40:
            return
    raise AssertionError(f"only {kills} runs were killed before their end")


def contents_of_artifact(folder: Path) -> dict[str, bytes]:
    """Without what a kill between the manifest and the tidying leaves."""
    return {
        name: data
        for name, data in contents(folder).items()
        if not name.startswith("state/") and name != "unfinished.json"
    }


def _dying_at(count: int) -> None:
    """From now on, this process kills itself before its count-th call that changes the file system."""
    left = count

    def wrap(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def _every_instant(work: Callable[[], None], check: Callable[[], None], again: Callable[[], None]) -> int:
    """Kill `work` before its first, second, … change of the disk; check after each; return how many."""
    for instant in range(1000):

        def doomed(instant: int = instant) -> None:
            _dying_at(instant)
            work()

        again()
        _, status = os.waitpid(in_child(doomed), 0)
        check()
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return instant
    raise AssertionError("never came to an end")


@pytest.mark.usefixtures("instantly")
def test_a_kill_before_every_single_change_of_the_disk(memory_path: Path) -> None:
    """Each round starts from nothing, is killed at one instant, is checked, and is then run to its end."""
    undisturbed = made(memory_path / "whole", SHORT)
    rounds = 0

    def root() -> Path:
        return memory_path / str(rounds)

    def check() -> None:
        finished(root())
        assert made(root(), SHORT) == undisturbed

    def again() -> None:
        nonlocal rounds
        rounds += 1

    assert _every_instant(lambda: run(root(), SHORT) and None, check, again) > 40


@contextlib.contextmanager
def _by_name(real: Any, path: Any = ".") -> Iterator[Any]:
    with real(path) as entries:
        yield sorted(entries, key=lambda entry: entry.name)


@pytest.mark.usefixtures("instantly")
def test_a_kill_at_every_instant_of_making_an_artifact_again(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--force deletes an artifact that stood there whole: at no instant may half of it pass for the whole."""
    # Folders are deleted in the file system's order, in which the manifest may happen to be the first to go.
    monkeypatch.setattr(os, "scandir", functools.partial(_by_name, os.scandir))
    root = memory_path / "store"
    undisturbed = made(root, SHORT)

    def check() -> None:
        assert len(finished(root)) >= 1
        assert made(root, SHORT) == undisturbed

    assert _every_instant(lambda: run(root, SHORT, "first") and None, check, lambda: None) > 20


@pytest.mark.usefixtures("instantly")
def test_a_kill_at_every_instant_of_a_one_off(memory_path: Path) -> None:
    """Into an --out where another finished run stands."""
    out = memory_path / "parent" / "out"

    def make(seed: str) -> Path:
        config = flow_fakes.GrindConfig(seed=seed, links=2, files=2)
        return oneoff.run_into(flow_fakes.GRIND, config, out, force=True).out

    expected = {seed: contents(make(seed)) for seed in ("old", "new")}
    assert expected["old"] != expected["new"]

    def check() -> None:
        if (out / NAME).exists():
            check_artifact(out, full=True)
            assert contents_of_artifact(out) in expected.values()
        assert contents(make("new")) == expected["new"]
        assert {p.name for p in out.iterdir()} == {"deep", "0.txt", "1.txt", NAME}

    assert _every_instant(lambda: make("new") and None, check, lambda: make("old") and None) > 10


def test_the_calls_that_are_counted_are_the_ones_that_are_made() -> None:
    """Nothing in the flow holds its own name for a call that the tests above replace."""
    for module in (artifact, oneoff, store):
        held = {getattr(os, name) for name in SYSTEM_CALLS} & {
            value for value in vars(module).values() if callable(value) and getattr(value, "__hash__", None)
        }
        assert not held
