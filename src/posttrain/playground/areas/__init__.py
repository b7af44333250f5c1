"""The parts of the world: one file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from posttrain.playground.areas import arithmetic, atlas, format, letters
from posttrain.playground.question import Area

AREAS: Mapping[str, Area] = MappingProxyType(
    {
        "atlas": atlas.AREA,
        "arithmetic": arithmetic.AREA,
        "format": format.AREA,
        "letters": letters.AREA,
    }
)
