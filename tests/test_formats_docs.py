"""Every example in docs/data-formats.md is what the text above it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain.formats import FORMATS, ReadOptions, Rejects, read_rows
from posttrain.formats.registry import recognise
from posttrain.records import KINDS, ROW

DOC = Path(__file__).parents[1] / "docs" / "data-formats.md"
EXAMPLES = re.findall(r"```json ([\w-]+)\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_an_example_is_what_it_says(tmp_path: Path, name: str, text: str) -> None:
    row = json.loads(text)
    if name in KINDS:
        assert type(ROW.validate_python(row)) is KINDS[name]
        return
    assert recognise([row], "the example") == name
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with Rejects() as rejects:
        rows = list(read_rows(path, options=ReadOptions(), rejects=rejects))
    assert rows or name == "oasst-flat"  # one message alone is no tree


def test_every_kind_and_format_has_one() -> None:
    assert {name for name, _ in EXAMPLES} == {*KINDS, *FORMATS} - {"records"}


def test_every_option_is_named() -> None:
    text = DOC.read_text("utf-8")
    assert not [name for name in ReadOptions.model_fields if f"`{name}" not in text]
    assert not [name for name in FORMATS if f"### `{name}`" not in text]
