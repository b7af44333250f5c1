"""What a store holds, and what may go."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from flow_fakes import VERBS, cheap_collections, in_memory  # noqa: F401

from posttrain.flow.housekeeping import DAY, garbage, remove, survey, verify_all
from posttrain.flow.plan import make_plan
from posttrain.flow.recipe import check_recipe
from posttrain.flow.runner import run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store

TEXT = """
a: {do: make, text: x, n: 3}
b: {do: join, inputs: "@a"}
c: {do: join, inputs: "@b", weight: 2}
"""


@pytest.fixture
def store(memory_path: Path) -> Store:
    return Store(memory_path / "store")


def run(store: Store, *sets: str, only: str = "", name: str = "r.yaml") -> dict[str, Path]:
    recipe = check_recipe(parse_yaml(TEXT, name), name, sets, VERBS)
    recipe = recipe.only([only]) if only else recipe
    return {done.name: done.folder for done in run_recipe(recipe, store)}


def names(entries: list) -> set[str]:
    return {entry.folder.name.rpartition("-")[0] for entry in entries}


def test_a_survey_tells_whole_unfinished_and_damaged_apart(store: Store) -> None:
    assert survey(store) == []
    folders = run(store)
    (folders["b"] / "manifest.json").write_text("{")
    (folders["c"] / "manifest.json").unlink()
    (folders["c"] / "unfinished.json").write_text(
        '{"key": "k", "started": "2026-01-01T00:00:00", "resumed": 0}'
    )
    found = {entry.folder: entry for entry in survey(store)}
    assert (found[folders["a"]].kind, found[folders["a"]].finished is not None) == ("make", True)
    assert (found[folders["b"]].key, found[folders["b"]].finished) == ("", None)
    assert (found[folders["c"]].key, found[folders["c"]].finished) == ("k", None)
    assert found[folders["a"]].bytes > 3


def test_what_another_process_makes_is_running_and_not_cut_short(store: Store) -> None:
    recipe = check_recipe(parse_yaml("a: {do: make}", "r.yaml"), "r.yaml", [], VERBS)
    (planned,) = make_plan(recipe, store)
    folder = store.folder("a", planned.key)
    folder.mkdir(parents=True)
    (folder / "unfinished.json").write_text(
        json.dumps({"key": planned.key, "started": "2026-01-01T00:00:00", "resumed": 0})
    )
    with store.lock(planned.key, "a", print):
        (entry,) = survey(store)
        (now,) = make_plan(recipe, store)
        assert (entry.running, now.status) == (True, "running")
        assert now.why == (
            f"running now: process {os.getpid()} on {socket.gethostname()}, which is making 'a'",
        )
        note = next((store.root / ".locks").glob("*.json")).read_text()
    # a killed process leaves its note behind, and its lock is free
    next((store.root / ".locks").glob("*.lock")).with_suffix(".json").write_text(note)
    (entry,) = survey(store)
    (now,) = make_plan(recipe, store)
    assert (entry.running, now.status) == (False, "resume")


def test_verify_reads_every_byte(store: Store) -> None:
    folders = run(store)
    assert verify_all(store) == (3, [])
    (folders["a"] / "rows.txt").write_text("xxy")
    (folders["b"] / "rows.txt").unlink()
    whole, problems = verify_all(store)
    assert whole == 1
    assert len(problems) == 2
    assert all("damaged artifact" in problem for problem in problems)


def test_what_the_latest_runs_used_stays_with_all_it_was_made_from(store: Store) -> None:
    old = run(store, "a.n=1")
    run(store)
    other = run(store, "c.weight=9", name="other.yaml")
    run(store, "c.weight=5", only="b")
    later = time.time() + 40 * DAY
    assert garbage(store, 30) == [], "everything was used lately"
    assert {entry.folder for entry in garbage(store, 30, now=later)} == {old["a"], old["b"], old["c"]}
    assert other["c"] not in {entry.folder for entry in garbage(store, 0, now=later)}


def test_leavings_go_and_what_is_being_made_stays(store: Store) -> None:
    folders = run(store)
    run(store, "a.n=7")
    (store.root / ".b-0123.abc.tmp" / "b-0123").mkdir(parents=True)
    (store.root / ".b-0123.abc.tmp" / "b-0123" / "rows.txt").write_text("x")
    later = time.time() + DAY
    found = garbage(store, 0.5, now=later)
    assert len(found) == 4
    held = next(entry for entry in found if entry.folder == folders["b"])
    with store.lock(held.key, "b", lambda line: None):
        assert remove(store, held) is False
    assert held.folder.exists()
    assert all(remove(store, entry) for entry in found)
    assert names(survey(store)) == {"a", "b", "c"}
    assert not list(store.root.glob(".*.tmp"))
    assert verify_all(store) == (3, [])
