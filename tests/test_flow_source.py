"""YAML with line numbers."""

from __future__ import annotations

import pytest

from posttrain.common.errors import ConfigError
from posttrain.flow.source import parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000_000", 1_000_000),
        ("-3", -3),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-31", "2024-01-31"),
        ("12:30", "12:30"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("", None),
        ("~", None),
        ("null", None),
        ("'1e-4'", "1e-4"),
        ("[a, 1, {b: 2}]", ["a", 1, {"b": 2}]),
        ("-", [None]),
    ],
)
def test_values_are_read_as_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line() -> None:
    source = parse_yaml("a: 1\nb:\n  c: [x,\n    y]\n  d: {e: 2}\n", "r.yaml")
    assert source.data == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": 2}}}
    assert source.places.at(("a",)) == "r.yaml:1"
    assert source.places.at(("b", "c", "0")) == "r.yaml:3"
    assert source.places.at(("b", "c", "1")) == "r.yaml:4"
    assert source.places.at(("b", "d", "e")) == "r.yaml:5"
    assert source.places.at(("b", "d", "unwritten", "deeper")) == "r.yaml:5"
    assert source.places.under("b").at(("c",)) == "r.yaml:3"
    assert source.places.at(("nothing",)) == "r.yaml"


def test_anchors_and_merge_keys_work_and_own_keys_win() -> None:
    text = "a: &x {n: 1, m: 2}\nb: {<<: *x, n: 3}\nc: *x\nd: {<<: *x, n: 3}\n"
    assert parse_yaml(text, "r").data == {
        "a": {"n": 1, "m": 2},
        "b": {"n": 3, "m": 2},
        "c": {"n": 1, "m": 2},
        "d": {"n": 3, "m": 2},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3: 'a' stands here and at r.yaml:1"),
        ("x:\n  a: 1\n  a: 1\n", "r.yaml:3: 'a' stands here and at r.yaml:2"),
        ("a: [1\nb: 2\n", "r.yaml:2: "),
        ("a: b: c\n", "r.yaml:1: "),
        ("? [a]\n: 1\n", "r.yaml:1: a key must be a word"),
        ("- a\n", "r.yaml: expected a mapping of names at the top"),
        ("", "r.yaml: empty"),
        ("a: !!python/object:os.system x\n", "r.yaml:1: could not determine a constructor"),
        ("a: &x [*x]\n", "r.yaml:1: an alias that holds itself"),
        ("a: 1\nb: \x00\n", "r.yaml:2: the character U+0000"),
    ],
)
def test_mistakes_name_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_yaml(text, "r.yaml")
    assert message in str(e.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")
