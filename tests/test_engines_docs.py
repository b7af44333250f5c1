"""docs/engines.md means what it says: its recipes hold, its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.engines.engines import ENGINES
from posttrain.flow import api
from posttrain.flow.oneoff import Result
from posttrain.flow.recipe import check_recipe
from posttrain.flow.source import parse_yaml

DOC = (Path(__file__).parents[1] / "docs" / "engines.md").read_text("utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL))
def test_every_recipe_holds(text):
    assert check_recipe(parse_yaml(text, "recipe.yaml"), "recipe.yaml").steps


def test_every_engine_is_in_the_table():
    assert set(re.findall(r"^\| `(\w+)`", DOC, re.MULTILINE)) == {*ENGINES, "engine"}


def test_the_commands_build_real_configs(monkeypatch):
    seen = []
    monkeypatch.setattr(
        api, "run_into", lambda step, cfg, out, **_: seen.append(cfg) or Result(Path(out), {}, "0" * 64)
    )
    (script,) = re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL)
    for line in script.splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert [(cfg.engine.name, cfg.n) for cfg in seen] == [("local", 8), ("http", 8)]
