"""Bad input and rough handling: each is told in words, with no traceback and nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_folder
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.common.config import parse
from posttrain.common.errors import ConfigError, DataError, StoreError
from posttrain.common.manifest import read_manifest
from posttrain.evaluation.items import read_items
from posttrain.flow.source import parse_yaml
from posttrain.formats import Rejects, read_records
from posttrain.models.load import load_model
from posttrain.models.precision import pick_device
from posttrain.models.spec import ModelSpec
from posttrain.records import Demonstration, Row


def _rows(path: Path, count: int = 3) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(count)))
    return path


def test_a_task_of_any_kind_of_row_reads_a_file_of_another_format(tmp_path: Path) -> None:
    found = read_items(str(_rows(tmp_path / "d.jsonl")), Row)
    assert [type(row) for row in found] == [Demonstration] * 3


@pytest.mark.parametrize("opening", ["", "[\n"])
def test_a_number_of_too_many_digits_costs_no_more_than_its_row(tmp_path: Path, opening: str) -> None:
    path = _rows(tmp_path / "d.jsonl")
    rows = path.read_text().replace("\n", ",\n") if opening else path.read_text()
    path.write_text(opening + rows + '{"prompt": "a", "completion": "y", "n": ' + "9" * 5000 + "}\n")
    with Rejects(tmp_path / "rejected.jsonl") as rejects:
        assert len(read_records(path, Demonstration, rejects=rejects)) == 3
    assert "4300 digits" in (tmp_path / "rejected.jsonl").read_text()


def test_columns_of_a_file_that_is_no_table_are_shown_short_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\x00\x01" * 500 + b",b\n1,2\n")
    with pytest.raises(DataError) as e:
        read_records(path)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 1500


def test_an_out_that_cannot_be_made_is_told_without_a_traceback(tmp_path: Path) -> None:
    data = _rows(tmp_path / "d.jsonl")
    done = CliRunner().invoke(app, ["curate", str(data), "--out", str(_rows(tmp_path / "e.jsonl") / "x")])
    assert done.exit_code == 1
    assert "Not a directory" in done.output


def test_an_out_inside_an_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _rows(tmp_path / "data" / "d.jsonl")
    done = CliRunner().invoke(app, ["curate", str(tmp_path / "data"), "--out", str(tmp_path / "data" / "o")])
    assert done.exit_code == 2
    assert "lies inside the input" in done.output
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["d.jsonl"]


@pytest.mark.parametrize("device", ["zzz", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        pick_device(device)


@pytest.mark.parametrize("damage", ["[]", '{"model_type": "llama", "hidden_size": "x"}'])
def test_a_damaged_config_is_named(tmp_path: Path, damage: str) -> None:
    import torch

    folder = tiny_folder("llama", tmp_path / "m")
    (folder / "config.json").write_text(damage)
    with pytest.raises(ConfigError, match=str(folder)):
        load_model(str(folder), dtype=torch.float32)
    whole = tiny_folder("llama", tmp_path / "whole")
    with pytest.raises(ConfigError, match=str(folder)):
        load_model(ModelSpec(path=str(folder), tokenizer=str(whole)), dtype=torch.float32)


def test_a_recipe_that_explodes_is_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)]
    with pytest.raises(ConfigError, match="more than 200,000 values"):
        parse_yaml("\n".join(lines), "bomb.yaml")
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_yaml("a: " + "[" * 3000 + "]" * 3000, "deep.yaml")


def test_too_many_rounds_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("r: {repeat: 100000000, steps: {a: {do: curate, source: d.jsonl}}}\n")
    done = CliRunner().invoke(app, ["plan", str(recipe), "--store", str(tmp_path / "store")])
    assert done.exit_code == 2
    assert "(at most 1000)" in done.output


def test_a_manifest_without_inputs_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="damaged"):
        read_manifest(tmp_path)


def test_a_dotted_path_to_something_else_is_no_config() -> None:
    import os.path

    with pytest.raises(ConfigError, match=r"source os:path: .* is no config class"):
        parse(os.path, {}, "source os:path")  # type: ignore[arg-type]


def test_words_that_the_user_writes_are_the_ones_suggested(tmp_path: Path) -> None:
    data = _rows(tmp_path / "d.jsonl")
    done = CliRunner().invoke(app, ["curate", str(data), "--out", str(tmp_path / "o"), "--set", "zzzzzz=1"])
    assert "as, aspect" in done.output
    done = CliRunner().invoke(app, ["curate", "", "--out", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert "an empty path" in done.output
