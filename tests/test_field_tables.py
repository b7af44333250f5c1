"""The tables of fields in the docs are whole: every field of a config class, in order, with its default.

Whose a table is says a comment above it, `<!-- fields: module:Class … -->`; a column of defaults a class.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.cli.fields import defaults_of, method_help
from posttrain.feedback.judges import JUDGES
from posttrain.models.spec import LoRA, ModelSpec
from posttrain.training.methods import METHODS
from posttrain.training.online_config import OnlineConfig
from posttrain.training.schedule import OptimizerConfig
from posttrain.training.train import TrainConfig

DOCS = Path(__file__).parents[1] / "docs"
TABLE = re.compile(r"^<!-- fields: (.+) -->\n\|.*\n\| ---.*\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = [
    (page.name, *found)
    for page in sorted(DOCS.glob("*.md"))
    for found in TABLE.findall(page.read_text("utf-8"))
]


def classes(names: str) -> list[type]:
    return [getattr(import_module(name.partition(":")[0]), name.partition(":")[2]) for name in names.split()]


@pytest.mark.parametrize(
    ("page", "names", "body"), TABLES, ids=[f"{page}-{names}" for page, names, _ in TABLES]
)
def test_a_table_has_every_field_with_its_default(page: str, names: str, body: str) -> None:
    rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in body.splitlines()]
    told = {row[0].strip("`"): row[1 : 1 + len(names.split())] for row in rows}
    true = [defaults_of(cls) for cls in classes(names)]
    fields = list(dict.fromkeys(field for defaults in true for field in defaults))
    assert told == {field: [defaults.get(field, "–") for defaults in true] for field in fields}
    assert len(true) > 1 or list(told) == fields, "in the order of the class"


def test_what_the_tables_are_of() -> None:
    documented = {cls for _, names, _ in TABLES for cls in classes(names)}
    assert {TrainConfig, OptimizerConfig, ModelSpec, LoRA, OnlineConfig} <= documented
    without_fields = {method.config for method in METHODS.values() if not defaults_of(method.config)}
    assert {method.config for method in METHODS.values()} - without_fields <= documented
    assert {cls for cls in JUDGES.values() if defaults_of(cls)} <= documented


def test_every_judge_is_on_its_page() -> None:
    page = (DOCS / "judges.md").read_text("utf-8")
    installed = [
        point.name for point in entry_points(group="posttrain.judges") if point.name.startswith("playground/")
    ]
    told = set(re.findall(r"^\*\*`([\w/]+)`\*\*", page, re.MULTILINE))
    assert told == {*JUDGES, *installed}


def test_the_help_of_a_method_shows_its_fields() -> None:
    shown = method_help("grpo")
    assert shown in CliRunner().invoke(app, ["train", "grpo", "--help"]).output
    assert "Fields of" not in CliRunner().invoke(app, ["train", "--help"]).output
    assert re.search(r"^  normalise +responses$", shown, re.MULTILINE)
    assert re.search(r"^  truncated +null$", shown, re.MULTILINE)
    assert "online" not in method_help("dpo")
    assert method_help("grpoo") == ""
