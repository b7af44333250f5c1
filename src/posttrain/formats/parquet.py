"""Parquet and Arrow: any file to plain rows, and our own records in typed columns of Parquet.

One schema holds every kind of record: a column that a kind does not have is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from posttrain.common.errors import DataError
from posttrain.formats.rejects import Rejects, RowError
from posttrain.records import KINDS, Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows
MARK = b"posttrain"  # key of the schema's metadata that says: these are records


def parquet_rows(path: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of each row, group after group; a damaged group is reported and the next one read.

    Raises DataError where the file's footer cannot be read, for then nothing in it can be found.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: not a whole Parquet file ({e}); fetch or write it again") from e
    with file:
        ours = MARK in (file.schema_arrow.metadata or {})
        size, before = path.stat().st_size, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(batch_size=BATCH, row_groups=[group]):
                    for row in _plain(path, batch, before + done, rejects):
                        yield row[0], unpack(row[1]) if ours else row[1]
                    done += batch.num_rows
            except (pa.ArrowException, OSError) as e:
                lost = RowError(
                    "", f"damaged Parquet: rows {before + done + 1} to {before + rows} are lost ({e})"
                )
                rejects.add_damage(str(path), before + done + 1, lost, rows=rows - done)
            before += rows
            rejects.bytes_read += size // file.num_row_groups


def arrow_rows(path: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of each row of an Arrow file, as `datasets` saves them; also of one that is cut off.

    Raises DataError where the file's schema cannot be read.
    """
    import pyarrow as pa

    with pa.OSFile(str(path)) as handle:
        try:
            batches = pa.ipc.open_stream(handle)
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{path}: not a whole Arrow file ({e}); save it again") from e
        done = 0
        try:
            for batch in batches:
                yield from _plain(path, batch, done, rejects)
                done += batch.num_rows
                rejects.bytes_read += batch.nbytes
        except (pa.ArrowException, OSError) as e:
            error = RowError("", f"an Arrow file that is damaged or cut off: {e}; the rows before were used")
            rejects.add_damage(str(path), done + 1, error)


def _plain(
    path: Path, batch: pa.RecordBatch, before: int, rejects: Rejects
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_one(batch, i) for i in range(batch.num_rows)]
    for number, row in enumerate(rows, before + 1):
        if isinstance(row, RowError):
            rejects.add(str(path), number, row)
        else:
            yield number, row


def _one(batch: pa.RecordBatch, i: int) -> dict[str, Any] | RowError:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column[i].as_py()
        except UnicodeDecodeError as e:
            return RowError(name, f"not UTF-8: 0x{e.object[e.start]:02x} at byte {e.start + 1}")
    return batch.slice(i, 1).to_pylist()[0]


def schema() -> pa.Schema:
    """The columns of our records; `content` of a message is null where it has `parts`."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    provenance = pa.struct(
        {
            "id": text,
            "source": text,
            "licence": text,
            "makers": pa.map_(text, text),
            "parents": pa.list_(text),
        }
    )
    part = pa.struct({"text": text, "image": text})
    messages = pa.list_(pa.struct({"role": text, "content": text, "parts": pa.list_(part)}))
    asked = {"messages": messages, "reference": text, "tags": pa.map_(text, text)}
    response = pa.struct(
        {
            "text": text,
            "token_ids": pa.list_(whole),
            "logps": pa.list_(real),
            "finish": text,
            "model_logps": pa.list_(real),
        }
    )
    columns = {
        "kind": text,
        "provenance": provenance,
        **asked,
        "prompt": pa.struct({"provenance": provenance, **asked}),
        "response": response,
        "responses": pa.list_(response),
        "chosen": response,
        "rejected": response,
        "strength": real,
        "probability": real,
        "aspect": text,
        "judge": text,
        "prompt_token_ids": pa.list_(whole),
        "tokenizer": text,
        "evidence": pa.map_(text, real),
        "scores": pa.map_(text, real),
        "label": pa.bool_(),
        "model": text,
        "text": text,
    }
    return pa.schema(list(columns.items()), metadata={MARK: b"1"})


def write_parquet(handle: IO[bytes], rows: Iterable[Row]) -> int:
    """Write records; returns their number. Raises DataError for a row that UTF-8 cannot hold."""
    import pyarrow.parquet as pq

    written, waiting, columns = 0, iter(rows), schema()
    with pq.ParquetWriter(handle, columns, compression="zstd") as out:
        while held := list(islice(waiting, BATCH)):
            out.write_batch(_batch(held, columns))
            written += len(held)
    return written


def _batch(rows: list[Row], columns: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    try:
        return pa.RecordBatch.from_pylist([_pack(row.model_dump()) for row in rows], columns)
    except UnicodeEncodeError as e:
        if len(rows) == 1:
            raise DataError(f"row {rows[0].provenance.id}: cannot be written as UTF-8 ({e})") from e
        for row in rows:
            _batch([row], columns)
        raise


def _pack(row: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a record as the schema holds it: content that is parts moves to a column of its own."""
    packed = dict(row)
    if "messages" in row:
        packed["messages"] = [
            {**m, "content": None, "parts": m["content"]} if isinstance(m["content"], (list, tuple)) else m
            for m in row["messages"]
        ]
    if "prompt" in row:
        packed["prompt"] = _pack(row["prompt"])
    return packed


def unpack(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_pack`, with the columns of other kinds taken away."""
    if row["kind"] not in KINDS:
        return row
    fields = KINDS[row["kind"]].model_fields
    return _unpacked({name: value for name, value in row.items() if name in fields})


def _unpacked(row: dict[str, Any]) -> dict[str, Any]:
    plain = {**row, "provenance": {**row["provenance"], "makers": dict(row["provenance"]["makers"])}}
    for name in ("tags", "scores", "evidence"):
        if name in row:
            plain[name] = dict(row[name])
    if "messages" in row:
        plain["messages"] = [
            {
                "role": m["role"],
                "content": m["content"] if m["parts"] is None else [_part(p) for p in m["parts"]],
            }
            for m in row["messages"]
        ]
    if "prompt" in row:
        plain["prompt"] = _unpacked(row["prompt"])
    return plain


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}
