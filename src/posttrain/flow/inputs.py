"""The inputs of a parsed config: finding them, replacing them, and the plain form that a key is made of."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from posttrain.common.config import Config, Input, Runtime
from posttrain.common.errors import ConfigError
from posttrain.common.own_code import source_hash
from posttrain.flow.source import Place


@dataclass(frozen=True)
class Leaf:
    """A string somewhere in a config.

    kind: of the input, where its field is marked as one (`common.config.Input`); "" where the field's type
    does not say what it holds; None where it is plain text.
    revision: what a field `revision` says beside a `path`.
    """

    value: str
    path: Place
    kind: str | None
    revision: str = ""


@dataclass(frozen=True)
class Pinned:
    """A hub model at one commit: a `path` and the `revision` beside it, else `name@commit`."""

    name: str
    commit: str

    def __str__(self) -> str:
        return f"{self.name}@{self.commit}"


Change = Callable[[Leaf], "str | Pinned"]


@dataclass(frozen=True)
class _Kind:
    """What annotations say of a value: (type, input kind or None) of each alternative in a union.

    runtime: its field is left out of the key.
    """

    options: tuple[tuple[Any, str | None], ...]
    runtime: bool = False
    revision: str = ""

    @property
    def types(self) -> tuple[Any, ...]:
        return tuple(option for option, _ in self.options)


def replace_inputs(config: Config, change: Change) -> Config:
    """A copy of the config with each string that may name an input replaced by what `change` makes of it."""
    replaced: Config = _walk(config, _Kind(()), (), change)
    return replaced


def inputs_of(config: Config) -> list[Leaf]:
    """Every string of the config, in the order of its fields."""
    leaves: list[Leaf] = []

    def note(leaf: Leaf) -> str:
        leaves.append(leaf)
        return leaf.value

    replace_inputs(config, note)
    return leaves


def _walk(value: Any, kind: _Kind, path: Place, change: Change) -> Any:
    if isinstance(value, BaseModel):
        changed: dict[str, Any] = {}
        for name, field, inner in _fields(value, kind):
            old = getattr(value, name)
            new = _walk(old, inner, (*path, field), change)
            if isinstance(new, Pinned) and name == "path" and "revision" in type(value).model_fields:
                changed |= {name: new.name, "revision": new.commit}
            elif new is not old:
                changed[name] = _settled(new)
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return change(_leaf(value, kind, path))
    if isinstance(value, Mapping):
        items = {k: _settled(_walk(v, _inner(kind, dict), (*path, str(k)), change)) for k, v in value.items()}
        return items if any(items[k] is not v for k, v in value.items()) else value
    if isinstance(value, list | tuple):
        new = [
            _settled(_walk(v, _inner(kind, list, i), (*path, str(i)), change)) for i, v in enumerate(value)
        ]
        return type(value)(new) if any(a is not b for a, b in zip(new, value, strict=True)) else value
    return value


def _settled(value: Any) -> Any:
    return str(value) if isinstance(value, Pinned) else value


def _fields(model: BaseModel, kind: _Kind) -> Iterator[tuple[str, str, _Kind]]:
    """(attribute, name as the user writes it, what its annotation says) of each field."""
    revision = getattr(model, "revision", None)
    for name, info in type(model).model_fields.items():
        mark = next((m.kind for m in info.metadata if isinstance(m, Input)), None)
        marks = [m() if m is Runtime else m for m in info.metadata if m is Runtime or isinstance(m, Runtime)]
        runtime = kind.runtime or any(not (m.unless and getattr(model, m.unless)) for m in marks)
        found = _kind(info.annotation, mark, runtime)
        if name == "path" and isinstance(revision, str):
            found = replace(found, revision=revision)
        yield name, info.alias or name, found


def _leaf(value: str, kind: _Kind, path: Place) -> Leaf:
    return Leaf(value, path, _string_kind(kind, value), kind.revision)


def _kind(annotation: Any, mark: str | None, runtime: bool) -> _Kind:
    options: list[tuple[Any, str | None]] = []

    def take(part: Any, mark: str | None) -> None:
        if hasattr(part, "__value__"):  # a `type X = …` alias
            take(part.__value__, mark)
        elif get_origin(part) is Annotated:
            inner, *metadata = get_args(part)
            take(inner, next((m.kind for m in metadata if isinstance(m, Input)), mark))
        elif get_origin(part) in (Union, types.UnionType):
            for arg in get_args(part):
                take(arg, mark)
        else:
            options.append((part, mark))

    take(annotation, mark)
    return _Kind(tuple(options), runtime)


def _string_kind(kind: _Kind, value: str) -> str | None:
    if not value or any(get_origin(option) is Literal and value in get_args(option) for option in kind.types):
        return None
    marks = [mark for option, mark in kind.options if mark and option in (str, Any, object)]
    if marks:
        return marks[0]
    return "" if not kind.options or any(option in (Any, object) for option in kind.types) else None


def _inner(kind: _Kind, container: type, index: int = 0) -> _Kind:
    """What is said of the items of a list or tuple, or of the values of a mapping."""
    for option, mark in kind.options:
        if option in (Any, object):
            return _Kind(((Any, mark),), kind.runtime)
        origin, args = get_origin(option) or option, get_args(option)
        if not isinstance(origin, type):
            continue
        if container is dict and issubclass(origin, Mapping):
            return _kind(args[1] if len(args) > 1 else Any, mark, kind.runtime)
        if container is list and issubclass(origin, Collection) and not issubclass(origin, str | Mapping):
            return _kind(_item(origin, args, index), mark, kind.runtime)
    return _Kind((), kind.runtime)


def _item(origin: type, args: tuple[Any, ...], index: int) -> Any:
    if issubclass(origin, tuple) and args and args[-1] is not Ellipsis:
        return args[index] if index < len(args) else Any
    return args[0] if args else Any


def plain(config: Config, input_of: Callable[[Leaf], Any]) -> dict[str, Any]:
    """The config as plain data without its runtime fields, each input as what `input_of` says it is.

    Two configs with the same plain form give the same result; a config held where its annotation names a more
    general class also says its own class, and that class's `version: ClassVar[int]` if it has one, or the
    hash of its source where it has none and is the user's own.
    Raises ConfigError for a value that has no stable form.
    """
    form: dict[str, Any] = _plain(config, _Kind(((type(config), None),)), (), input_of)
    return form


def _plug_in(cls: type[BaseModel]) -> dict[str, Any]:
    """What tells a class from others that could stand in its place: its name, its `version` if any, and,
    where it gives itself none and lies in a file of the user's own, its source.
    """
    version = None if "version" in cls.model_fields else getattr(cls, "version", None)
    said: dict[str, Any] = {"class_version": version} if isinstance(version, int) else {}
    source = None if "version" in vars(cls) else source_hash(cls)
    return {
        "class": f"{cls.__module__}:{cls.__qualname__}",
        **said,
        **({"class_source": source} if source else {}),
    }


def _plain(value: Any, kind: _Kind, path: Place, input_of: Callable[[Leaf], Any]) -> Any:
    if isinstance(value, BaseModel):
        form = {
            name: _plain(getattr(value, attribute), inner, (*path, name), input_of)
            for attribute, name, inner in sorted(_fields(value, kind), key=lambda field: field[1])
            if not inner.runtime
        }
        return form if type(value) in kind.types else {**_plug_in(type(value)), **form}
    if isinstance(value, enum.Enum):
        return _plain(value.value, _Kind(((type(value.value), None),)), path, input_of)
    if isinstance(value, str):
        leaf = _leaf(value, kind, path)
        return value if leaf.kind is None else input_of(leaf)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{'.'.join(path)}: the keys of a mapping must be text")
        return {k: _plain(v, _inner(kind, dict), (*path, k), input_of) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, _inner(kind, list, i), (*path, str(i)), input_of) for i, v in enumerate(value)]
    if isinstance(value, frozenset | set):
        return sorted(_plain(v, _inner(kind, list), path, input_of) for v in value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    hint = "; mark its field as DataRef or ModelRef" if isinstance(value, PurePath) else ""
    raise ConfigError(
        f"{'.'.join(path)}: {value!r} ({type(value).__name__}) has no stable form to make a key of{hint}"
    )
