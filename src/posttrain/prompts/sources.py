"""Sources: where rows come from. Third parties plug theirs in (entry points `posttrain.sources`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict, Field, field_validator

from posttrain.common.config import Config, DataRef
from posttrain.common.errors import ConfigError
from posttrain.common.named import Kind, Use
from posttrain.common.registry import known
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
            try:
                named_format(format)
            except ConfigError as e:
                raise ValueError(str(e)) from None
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


_KIND = Kind("source", lambda: SOURCES, ("rows",))


class SourceUse(Use):
    """A source as a recipe uses it."""


def read_source(value: Any) -> SourceUse | str:
    """What a recipe or a script gives for a source: a path stays one, anything else becomes a SourceUse.

    A name is one that the registry knows and that is no file; a mapping with a path and no name means files.
    Raises ValueError with what to change.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty path; give a file or a folder")
        return _KIND.read(SourceUse, value) if _is_name(value) else value
    if not isinstance(value, Mapping | Config):
        raise ValueError(f"a source is a path, a name or a mapping with a name, got {value!r}")
    if isinstance(value, Mapping) and "path" in value:
        value = {"name": "files", **value}
    return _KIND.read(SourceUse, value)


def _is_name(value: str) -> bool:
    if value.startswith("@") or Path(value).expanduser().exists():
        return False
    return value in known("sources", SOURCES) or (":" in value and "/" not in value)
