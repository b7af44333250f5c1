"""Strict, frozen configs: unknown keys are refused with the nearest valid name, every default lives on its
class.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.common.errors import ConfigError


class Config(BaseModel):
    """Base of every config. Frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_default=True
    )


@dataclass(frozen=True)
class Runtime:
    """Marks a field that cannot change the result (devices, logging, budgets of memory): left out of a
    step's key.

    unless: an attribute of the config; where it is true the field does matter, and the key has it.
    """

    unless: str = ""


@dataclass(frozen=True)
class Input:
    """Marks a field that names an input: `@step`, `@step/file`, a local path, or a hub id.

    kind: "data" is a path; "model" a path or a hub id (its revision in a field `revision` beside a `path`, or
    as `owner/name@revision`); "text" a path, or else the text itself (a template, a rubric); "code" a
    function, as `module:name`. A local path is hashed by content, a hub id by revision, code by its source.
    """

    kind: str


DataRef = Annotated[str, Input("data")]
ModelRef = Annotated[str, Input("model")]

C = TypeVar("C", bound=BaseModel)


def parse(cls: type[C], data: Mapping[str, Any], where: str) -> C:
    """Build `cls` from plain data; `where` (a file, a step, an option) opens every message.

    Raises ConfigError with one line a mistake, naming the nearest valid key for an unknown one.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
        raise ConfigError(f"{where}: {cls!r} is no config class")
    try:
        return cls.model_validate(dict(data))
    except ValidationError as e:
        lines = [message for _, message in mistakes(cls, e)]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def mistakes(cls: type[BaseModel], error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """Each mistake of a failed validation of `cls` as (path of the field, message in the user's words).

    pydantic calls a sequence too short when its items are wrong; that is then no mistake of its own.
    """
    found = error.errors()
    within = {e["loc"][:end] for e in found for end in range(len(e["loc"]))}
    told = [e for e in found if e["type"] != "too_short" or e["loc"] not in within]
    return [(tuple(str(part) for part in e["loc"]), _explain(cls, e)) for e in told]


def nearest(name: str, valid: list[str]) -> str:
    """A hint for a name that is not among `valid`: the nearest one, else the whole list."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "valid names: " + ", ".join(sorted(valid))


def _explain(cls: type[BaseModel], error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    dotted = ".".join(loc)
    if error["type"] == "extra_forbidden":
        owner = _model_at(cls, loc[:-1])
        valid = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
        hint = f" ({nearest(loc[-1], valid)})" if valid else ""
        return f"unknown key '{dotted}'{hint}"
    if error["type"] == "missing":
        return f"'{dotted}' is missing"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
        return f"'{dotted}': {message}" if dotted else message
    return f"'{dotted}': {error['msg'].lower()}, got {error['input']!r}"


def _model_at(cls: type[BaseModel], loc: list[str]) -> type[BaseModel] | None:
    """The model class that owns the key at `loc`, looking through Optional, unions and lists."""
    current: type[BaseModel] | None = cls
    annotation: Any = cls
    for part in loc:
        if current is None:
            return None
        if part in current.model_fields:
            annotation = current.model_fields[part].annotation
            current = next(_models(annotation), None)
        else:  # a union's tag, or a list index: then stay where we are
            current = next((one for one in _models(annotation) if _has_tag(one, part)), current)
    return current


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Annotated):
        for arg in get_args(annotation):
            yield from _models(arg)


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    fields = model.model_fields.values()
    return any(get_origin(f.annotation) is Literal and tag in get_args(f.annotation) for f in fields)
