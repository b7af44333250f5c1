"""Sources: where rows come from. Third parties plug theirs in (entry points `posttrain.sources`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict, Field, SerializeAsAny, field_validator, model_serializer

from posttrain.common.config import Config, DataRef, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import known, resolve
from posttrain.formats import PLURALS, ReadOptions, Rejects, read_rows
from posttrain.formats.registry import named_format
from posttrain.records import Row

Plural = Literal["prompts", "demonstrations", "comparisons", "ratings", "samples", "documents"]


@runtime_checkable
class Source(Protocol):
    """A frozen Config whose fields determine its rows: the same config gives the same rows."""

    def rows(self) -> Iterable[Row]: ...


class Reading(ReadOptions):
    """How files are read: see ReadOptions for the formats' own options.

    format: a name of posttrain.formats.FORMATS; "auto": each file's first rows decide.
    as: the kind of rows wanted; None: what the format gives by itself.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    format: str = "auto"
    as_: Plural | None = Field(default=None, alias="as")

    @field_validator("format")
    @classmethod
    def _known(cls, format: str) -> str:
        if format != "auto":
            _as_value_error(named_format, format)
        return format

    @property
    def kind(self) -> type[Row] | None:
        return PLURALS[self.as_] if self.as_ else None


class Files(Reading):
    """The source `files`: a file, an artifact or a folder of data files, read as `formats.read_rows` does."""

    path: DataRef

    def rows(self) -> Iterator[Row]:
        """Raises DataError at the first row that cannot be used."""
        return self.read(Rejects(strict=True))

    def read(self, rejects: Rejects) -> Iterator[Row]:
        """The rows that can be used; the others go to `rejects`."""
        options = ReadOptions(**{name: getattr(self, name) for name in ReadOptions.model_fields})
        return read_rows(self.path, self.kind, format=self.format, options=options, rejects=rejects)


SOURCES: dict[str, type[Config]] = {"files": Files}


class SourceUse(Config):
    """A source as a recipe uses it: written `name`, or `{name: …, settings…}`."""

    name: str
    settings: SerializeAsAny[Config]

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        return {"name": plain["name"], **plain["settings"]}


def read_source(value: Any) -> Any:
    """What a recipe or a script gives for a source: a path stays one, anything else becomes a SourceUse.

    A name is one that the registry knows and that is no file; a mapping with a path and no name means files.
    Raises ValueError with what to change.
    """
    if isinstance(value, SourceUse):
        return value
    if isinstance(value, Config):
        return SourceUse(name=_name_of(value), settings=value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty path; give a file or a folder")
        return _use(value, {}) if _is_name(value) else value
    if not isinstance(value, Mapping):
        raise ValueError(f"a source is a path, a name or a mapping with a name, got {value!r}")
    spec = dict(value)
    name = spec.pop("name", "files" if "path" in spec else None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"a source is a mapping with a 'name' (or a 'path'), got {value!r}")
    return _use(name, spec)


def _use(name: str, spec: Mapping[str, Any]) -> SourceUse:
    def build() -> SourceUse:
        return SourceUse(name=name, settings=parse(resolve("sources", name, SOURCES), spec, f"source {name}"))

    use: SourceUse = _as_value_error(build)
    if not isinstance(use.settings, Source):
        raise ValueError(f"source {name}: {type(use.settings).__name__} has no rows()")
    return use


def _is_name(value: str) -> bool:
    if value.startswith("@") or Path(value).expanduser().exists():
        return False
    return value in known("sources", SOURCES) or (":" in value and "/" not in value)


def _name_of(settings: Config) -> str:
    for name, cls in SOURCES.items():
        if type(settings) is cls:
            return name
    return f"{type(settings).__module__}:{type(settings).__qualname__}"


def _as_value_error(call: Any, *args: Any) -> Any:
    """Pydantic puts the place in front of a ValueError."""
    try:
        return call(*args)
    except ConfigError as e:
        raise ValueError(str(e)) from None
