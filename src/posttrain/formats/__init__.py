"""Files and other people's formats to records, and back."""

from posttrain.formats.build import ReadOptions
from posttrain.formats.convert import PLURALS, convert, plural
from posttrain.formats.read import files_of, read_records, read_rows
from posttrain.formats.registry import FORMATS
from posttrain.formats.rejects import Rejects, RowError
from posttrain.formats.to_trl import to_trl, write_trl
from posttrain.formats.write import write_records

__all__ = [
    "FORMATS",
    "PLURALS",
    "ReadOptions",
    "Rejects",
    "RowError",
    "convert",
    "files_of",
    "plural",
    "read_records",
    "read_rows",
    "to_trl",
    "write_records",
    "write_trl",
]
