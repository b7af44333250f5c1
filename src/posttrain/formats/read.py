"""Reading rows: other people's files with what is wrong put aside, our own artifacts strictly and fast."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import overload

from pydantic import ValidationError

from posttrain.common.errors import DataError
from posttrain.formats import own
from posttrain.formats.build import Origin, ReadOptions
from posttrain.formats.convert import convert, plural
from posttrain.formats.fields import Plain
from posttrain.formats.json_rows import parse_line
from posttrain.formats.opening import BOM, CUT, cut_off, first_bytes, open_bytes
from posttrain.formats.raw import SUFFIXES, Raw, layout_of, raw_rows
from posttrain.formats.registry import Reader, named_format, reader, recognise
from posttrain.formats.rejects import Rejects, RowError, row_error
from posttrain.records import ROW, Prompt, R, Row

LOOKED_AT = 50  # rows by which a file's format is recognised
ROWS = "rows.jsonl"
BESIDE = ("dataset_info.json", "state.json", "dataset_infos.json")  # what `datasets` saves beside its data


def read_rows(
    path: Path | str,
    kind: type[Row] | None = None,
    *,
    format: str = "auto",
    options: ReadOptions | None = None,
    rejects: Rejects | None = None,
    limit: int | None = None,
) -> Iterator[Row]:
    """Stream the rows of a file, an artifact's folder or a folder of data files.

    kind: what to read them as; None: what the format gives by itself.
    format: a name of FORMATS, or "auto": each file's first rows decide.
    rejects: takes what cannot be used; None: the first such row is an error.
    limit: stop after so many rows.
    Raises DataError where a file cannot be read or recognised, or cannot give `kind`; ConfigError for an
    unknown format.
    """
    account = Rejects(strict=True) if rejects is None else rejects
    found = _read(files_of(path), kind, format, options or ReadOptions(), account)
    return islice(found, limit) if limit is not None else found


def _read(
    files: list[Path], kind: type[Row] | None, format: str, options: ReadOptions, rejects: Rejects
) -> Iterator[Row]:
    if format != "auto":
        named_format(format)
    for file in files:
        raws = raw_rows(file, rejects, options.separator)
        first = list(islice(raws, LOOKED_AT))
        if not first:
            continue
        name = format if format != "auto" else recognise([raw.row for raw in first], str(file))
        read = reader(name, kind, str(file))
        rejects.formats[str(file)] = name
        gather = named_format(name).gather
        rest = chain(first, raws)
        for raw in gather(rest, rejects) if gather else rest:
            yield from _rows(raw, read, kind, options, rejects)


def _rows(
    raw: Raw, read: Reader, kind: type[Row] | None, options: ReadOptions, rejects: Rejects
) -> Iterator[Row]:
    try:
        origin = Origin(raw.file, raw.line, options, _licence(raw.row, options))
        for made in read(raw.row, origin):
            if isinstance(made, RowError):
                rejects.add(raw.file, raw.line, made, raw.row)
                continue
            for row in convert(made, kind) if kind else (made,):
                rejects.kept += 1
                yield row
    except RowError as e:
        rejects.add(raw.file, raw.line, e, raw.row)
    except ValidationError as e:
        rejects.add(raw.file, raw.line, row_error(e), raw.row)


def _licence(row: Plain, options: ReadOptions) -> str:
    said = row.get("licence") or row.get("license")
    return said if isinstance(said, str) else options.licence


@overload
def read_records(path: Path | str, kind: type[R], *, rejects: Rejects | None = None) -> list[R]: ...
@overload
def read_records(path: Path | str, kind: None = None, *, rejects: Rejects | None = None) -> list[Row]: ...
def read_records(
    path: Path | str, kind: type[Row] | None = None, *, rejects: Rejects | None = None
) -> list[Row] | list[R]:
    """All rows of an artifact or a file, for a step to work on: strict, and quick for our own records.

    kind: the kind they must be. Where it is Prompt, the prompts of other rows are taken; of our own records
        nothing else is converted.
    rejects: for files in other people's formats, takes what cannot be used; None: that is an error.
    Raises DataError naming file, line and field.
    """
    rows: list[Row] = []
    for file in files_of(path):
        if is_own(file):
            rows.extend(_own_lines(file))
        else:
            rows.extend(read_rows(file, kind, rejects=rejects))
    return [_as(row, kind, path) for row in rows] if kind else rows


def _as(row: Row, kind: type[Row], path: Path | str) -> Row:
    if isinstance(row, kind):
        return row
    if kind is Prompt and hasattr(row, "prompt"):
        return row.prompt
    raise DataError(
        f"{path}: holds {plural(type(row))} (row {row.provenance.id}), expected {plural(kind)}; "
        f"a step {{do: curate, source: …, as: {plural(kind)}}} says how they are to be made"
    )


def is_own(file: Path) -> bool:
    """Whether a file is lines of our own records, by its first row."""
    if layout_of(file) != "json":
        return False
    with open_bytes(file) as (handle, _):
        if first_bytes(handle)[:1] != b"{":
            return False
        try:
            return own.matches(parse_line(handle.readline().removeprefix(BOM)))
        except (RowError, *CUT):
            return False


def _own_lines(file: Path) -> Iterator[Row]:
    validate = ROW.validate_json
    with open_bytes(file) as (handle, _):
        number = 0
        try:
            for number, line in enumerate(handle, 1):
                if number == 1:
                    line = line.removeprefix(BOM)
                if line.strip():
                    yield validate(line)
        except ValidationError as e:
            raise DataError(f"{file}:{number}: {row_error(e)}") from None
        except CUT as e:
            raise DataError(f"{file}:{number + 1}: {cut_off(e)}") from e


def files_of(path: Path | str) -> list[Path]:
    """The data files that a path stands for: itself, an artifact's rows.jsonl, or the data files in a folder.

    Raises DataError where there are none, or where a folder holds several kinds of files.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file{_near(path)}")
    if (path / ROWS).is_file():
        return [path / ROWS]
    files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
    files = [file for file in files if file.name not in BESIDE]
    if not files:
        raise DataError(f"{path}: a folder with neither {ROWS} nor data files ({', '.join(SUFFIXES)})")
    if len({_suffix(file) for file in files}) > 1:
        raise DataError(
            f"{path}: a folder of several kinds of files; name one of {', '.join(f.name for f in files)}"
        )
    return files


def _suffix(file: Path) -> str:
    return "" if file.name.startswith(".") else Path(file.name.lower().removesuffix(".gz")).suffix


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    close = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
