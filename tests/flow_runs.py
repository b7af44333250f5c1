"""A recipe of quick steps, planned and run in a store of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flow_fakes import RAN, VERBS

from posttrain.flow.plan import Planned, make_plan
from posttrain.flow.recipe import Recipe, check_recipe
from posttrain.flow.runner import Done, run_recipe
from posttrain.flow.source import parse_yaml
from posttrain.flow.store import Store

TEXT = """
a: {do: make, text: x, n: 3}
b: {do: join, inputs: ["@a", "@a/rows.txt"]}
c: {do: join, inputs: "@b", weight: 2}
"""


@pytest.fixture(name="store")
def fresh_store(memory_path: Path) -> Store:
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
