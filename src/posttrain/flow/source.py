"""YAML with line numbers: YAML 1.2's idea of numbers and booleans, repeated keys refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from posttrain.common.errors import ConfigError

Place = tuple[str, ...]


@dataclass(frozen=True)
class Places:
    """Where each value of a document was written.

    entries: {path of keys: what messages call its place, e.g. "recipe.yaml:12"}.
    """

    entries: Mapping[Place, str]
    prefix: Place = ()

    def at(self, path: Place = ()) -> str:
        """The place of `path`; where it was not written, of a key in it (an override's), else above it."""
        full = (*self.prefix, *path)
        inside = (place for key, place in self.entries.items() if key[: len(full)] == full)
        above = (self.entries[full[:end]] for end in range(len(full), -1, -1) if full[:end] in self.entries)
        return self.entries.get(full) or next(inside, None) or next(above, "")

    def under(self, *path: str) -> Places:
        return Places(self.entries, (*self.prefix, *path))

    def moved(self, path: Place, place: str) -> Places:
        """The same places, but `path` was written at `place`."""
        return Places(MappingProxyType({**self.entries, (*self.prefix, *path): place}), self.prefix)


@dataclass(frozen=True)
class Source:
    """A YAML document whose top is a mapping, and where each of its values stands."""

    data: dict[str, Any]
    places: Places


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema: `no` is a word, 1e-4 a number, 010 is ten, a date is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (the parent's type)

    def integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        base = {"0x": 16, "0o": 8}.get(text.lstrip("+-")[:2].lower(), 10)
        return int(text, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path | str) -> Source:
    """Read a file. Raises ConfigError with the file and line of what is wrong."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give a YAML file") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Source:
    """Read a document whose top is a mapping. name: what messages call it."""
    entries: dict[Place, str] = {(): name}
    value = _build(text, name, entries)
    if value is None:
        raise ConfigError(f"{name}: empty")
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a mapping of names at the top, got {value!r}")
    return Source(value, Places(MappingProxyType(entries)))


def parse_value(text: str, name: str) -> Any:
    """One value as YAML reads it: 0.1 is a number, true a boolean, [a, b] a list."""
    return _build(text, name, {})


def _build(text: str, name: str, entries: dict[Place, str]) -> Any:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as e:
        number = text.count("\n", 0, e.position) + 1
        found = f"U+{ord(text[e.position]):04X}"
        raise ConfigError(f"{name}:{number}: the character {found} may not stand in YAML") from None
    try:
        node = loader.get_single_node()
        return None if node is None else _Builder(loader, name, entries).value(node, ())
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        if e.problem and "'@'" in e.problem:
            raise ConfigError(f'{name}{line}: put references in quotes: "@step"') from None
        if e.problem and e.problem.startswith("found unknown escape character"):
            hint = "between double quotes a backslash is YAML's own; put an expression between single quotes"
            raise ConfigError(f"{name}{line}: {e.problem}: {hint}") from None
        context = f"{e.context}: " if e.context else ""
        raise ConfigError(f"{name}{line}: {context}{e.problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as e:
        raise ConfigError(f"{name}: {e}") from None
    finally:
        loader.dispose()


MOST_VALUES = 200_000


class _Builder:
    """Turns nodes into plain values and notes the line of each."""

    def __init__(self, loader: _Loader, name: str, entries: dict[Place, str]) -> None:
        self.loader, self.name, self.entries = loader, name, entries
        self.open: set[int] = set()
        self.flat: set[int] = set()
        self.built = 0

    def value(self, node: yaml.Node, path: Place) -> Any:
        if id(node) in self.open:
            raise ConfigError(f"{self._line(node)}: an alias that holds itself")
        self.built += 1
        if self.built > MOST_VALUES:  # aliases of aliases multiply
            raise ConfigError(f"{self._line(node)}: more than {MOST_VALUES:,} values")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, str(i))) for i, child in enumerate(node.value)]
            return self.loader.construct_object(node, deep=True)
        finally:
            self.open.discard(id(node))

    def _item(self, node: yaml.Node, path: Place) -> Any:
        self.entries[path] = self._line(node)
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Place) -> dict[str, Any]:
        if id(node) not in self.flat:
            self._check_keys(node)
            self.loader.flatten_mapping(node)
            self.flat.add(id(node))
        built = {}
        for key, child in node.value:
            self.entries[(*path, key.value)] = self._line(key)
            built[key.value] = self.value(child, (*path, key.value))
        return built

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, str] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._line(key)}: a key must be a word")
            if key.value in seen:
                raise ConfigError(f"{self._line(key)}: '{key.value}' stands here and at {seen[key.value]}")
            seen[key.value] = self._line(key)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"
