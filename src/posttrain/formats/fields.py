"""Fields of a plain row, checked: every error names the field and says what was expected of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.formats.rejects import RowError
from posttrain.records import check_text

Plain = Mapping[str, Any]


def named(value: Any) -> str:
    """A value as error messages show it."""
    kinds = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
    }
    if value is None:
        return "nothing"
    shown = repr(value)
    return (
        f"{kinds.get(type(value), type(value).__name__)} ({shown if len(shown) <= 60 else shown[:60] + '…'})"
    )


def whole(value: Any, field: str) -> str:
    """`value` as undamaged text, which may be empty. Raises RowError naming `field`."""
    if not isinstance(value, str):
        raise RowError(field, f"expected text: got {named(value)}")
    try:
        check_text(value)
    except ValueError as e:
        byte = next((ord(c) - 0xDC00 for c in value if "\udc80" <= c <= "\udcff"), None)
        raise RowError(field, str(e) if byte is None else f"not UTF-8: byte 0x{byte:02x}") from None
    return value


def text(row: Plain, *fields: str) -> str:
    """The text of the first of `fields` that the row has. Raises RowError: missing, empty or damaged."""
    for field in fields:
        if row.get(field) is not None:
            value = whole(row[field], field)
            if not value.strip():
                raise RowError(field, "empty: expected text")
            return value
    raise RowError(fields[0], "missing: expected text")


def optional(row: Plain, field: str) -> str:
    """The text of a field that may be missing, null or empty."""
    return "" if row.get(field) is None else whole(row[field], field)


def listed(row: Plain, field: str) -> list[Any]:
    """A field that holds a list that is not empty."""
    value = row.get(field)
    if not isinstance(value, list):
        raise RowError(field, f"expected a list: got {named(value)}")
    if not value:
        raise RowError(field, "empty: expected a list with something in it")
    return value


def number(value: Any, field: str) -> float | None:
    """A score, also one written as text; None for what means "no answer": null, "N/A", ""."""
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A", "NA", "NONE")):
        return None
    try:
        read = (
            float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        )
    except ValueError:
        read = math.nan
    if not math.isfinite(read):
        raise RowError(field, f"expected a finite number: got {named(value)}")
    return read


def boolean(value: Any, field: str) -> bool:
    """A label: true or false, 0 or 1, or one of these as text (CSV)."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, (bool, int, float, str)) and str(value).strip().lower().removesuffix(".0") in known:
        return known[str(value).strip().lower().removesuffix(".0")]
    raise RowError(field, f"expected true or false: got {named(value)}")


def tags(row: Plain, used: Iterable[str]) -> dict[str, str]:
    """Every column that nothing else reads, so that none is lost: text as it is, the rest as JSON."""
    left_out = {*used, "licence", "license"}
    kept = {str(name): value for name, value in row.items() if value is not None and name not in left_out}
    if "references" in kept and not _is_list(kept["references"]):
        kept["references"] = [str(kept["references"])]  # a prompt's tag of this name is always a list
    return {
        name: whole(value, name) if isinstance(value, str) else _json(value) for name, value in kept.items()
    }


def _is_list(value: Any) -> bool:
    try:
        return isinstance(json.loads(value) if isinstance(value, str) else value, list)
    except ValueError:
        return False


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
