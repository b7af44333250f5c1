"""JSON to plain rows: one object a line, an array of objects, or objects spread over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from posttrain.formats.fields import named
from posttrain.formats.opening import BOM, CUT, cut_off, everything, first_bytes
from posttrain.formats.rejects import Rejects, RowError

_GAP, _OPENING = re.compile(r"[\s,]*"), re.compile(r"\s*\[?")


def json_rows(file: str, handle: IO[bytes], rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each object in a stream; what is none goes to `rejects`."""
    start = first_bytes(handle)
    if start.startswith(b"[") or start.partition(b"\n")[0].strip() == b"{":
        yield from _values(file, handle, rejects)
    else:
        yield from _lines(file, handle, rejects)


def _lines(file: str, handle: IO[bytes], rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while True:
        number += 1
        try:
            line = handle.readline()
        except CUT as e:
            rejects.add_damage(file, number, cut_off(e))
            return
        if not line:
            return
        if number == 1:
            line = line.removeprefix(BOM)
        if not line.strip():
            continue
        try:
            value = parse_line(line)
        except RowError as e:
            rejects.add(file, number, e, line)
        else:
            yield number, value


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of JSON. Raises RowError with what is wrong and where on the line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise RowError("", f"not UTF-8: 0x{line[e.start]:02x} at byte {e.start + 1} of the line") from None
    except json.JSONDecodeError as e:
        cut = "" if line.endswith(b"\n") else "; the line has no end, the file seems cut off"
        raise RowError("", f"invalid JSON: {e.msg} at column {e.colno}{cut}") from None
    except RecursionError:
        raise RowError("", "invalid JSON: nested too deeply") from None
    except ValueError as e:  # Python's bound on the digits of a whole number
        raise RowError("", f"invalid JSON: a number too long to read: {e}") from None
    return _object(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError("", f"not an object: expected {{…}}, got {named(value)}")
    return value


def _values(file: str, handle: IO[bytes], rejects: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of an array, or one after another. Holds the file's text in memory.

    Gives what stands before a cut. Bytes that are not UTF-8 become lone surrogates, which the reader of the
    row finds and names with their field.
    """
    data, damage = everything(handle)
    text = data.decode("utf-8", "surrogateescape")
    opening = _OPENING.match(text)
    at, line, counted = opening.end() if opening else 0, 1, 0
    array = text[:at].endswith("[")
    while True:
        gap = _GAP.match(text, at)
        at = gap.end() if gap else at
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text) or (array and text[at] == "]"):
            break
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            broken = RowError("", f"invalid JSON: {e}; the rest of the file cannot be read")
            rejects.add_damage(file, line, cut_off(damage) if damage else broken)
            return
        try:
            yield line, _object(value)
        except RowError as e:
            rejects.add(file, line, e, text[at:end])
        at = end
    if damage:
        rejects.add_damage(file, line, cut_off(damage))
    elif array and at == len(text):
        rejects.add_damage(file, line, RowError("", "a JSON array without an end: the file seems cut off"))
