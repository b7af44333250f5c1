"""docs/verifiers.md means what it says: its recipes hold, its kinds are those there are, its examples too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain.feedback.instructions.judge import Instructions
from posttrain.feedback.instructions.kinds import KINDS
from posttrain.feedback.maths.answers import final_answer
from posttrain.flow.recipe import check_recipe
from posttrain.flow.source import parse_yaml
from posttrain.formats import read_records
from posttrain.records import Prompt, Response

DOC = (Path(__file__).parents[1] / "docs" / "verifiers.md").read_text("utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL))
def test_every_recipe_holds(text):
    assert check_recipe(parse_yaml(text, "recipe.yaml"), "recipe.yaml").steps


def test_the_instructions_of_the_table_are_those_there_are():
    rows = [line.split("|")[1:3] for line in DOC.splitlines() if re.match(r"\| `\w+:\w+`", line)]
    told = {
        kind: set(re.findall(r"`(\w+)`", given))
        for kinds, given in rows
        for kind in re.findall(r"`([\w:]+)`", kinds)
    }
    assert told == {kind: set(checker.model_fields) for kind, checker in KINDS.items()}


def test_the_example_of_a_prompt_is_read(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(json.loads(example)) + "\n")
    (asked,) = read_records(path, Prompt)
    (said,) = Instructions().open().score([(asked, Response(text="* Rhine\n* Po\n* Elbe"))])
    assert said.score == 1.0


def test_the_marks_of_the_table_are_found():
    rows = re.findall(r"^\| .*? \| `([^`]*)` \| `([^`]*)` \|$", DOC, re.MULTILINE)
    assert len(rows) == 4
    assert [final_answer(example) for example, _ in rows] == [answer for _, answer in rows]
