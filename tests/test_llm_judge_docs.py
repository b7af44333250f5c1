"""docs/llm-judge.md means what it says: its recipes hold, and it names what the summary and the task have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.flow.recipe import check_recipe
from posttrain.flow.source import parse_yaml
from posttrain.playground.judge_server import Errors

DOC = (Path(__file__).parents[1] / "docs" / "llm-judge.md").read_text("utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL))
def test_every_recipe_holds(text):
    assert check_recipe(parse_yaml(text, "recipe.yaml"), "recipe.yaml").steps


def test_every_error_of_the_playgrounds_judge_is_named():
    (named,) = re.findall(r"`errors: \{([^}]*)\}`", DOC)
    assert named.split(", ") == list(Errors.model_fields)
