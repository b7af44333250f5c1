"""Which world a source or a task of the playground is about."""

from __future__ import annotations

from typing import Annotated

from posttrain.common.config import Config, Runtime
from posttrain.playground.world import Fame, World, build


class Setting(Config):
    """seed: of the world. fame: what of the atlas is well known or not, single facts or whole countries."""

    seed: int = 0
    # Worlds of famous facts came first: their keys do not name what there was no other of.
    fame: Annotated[Fame, Runtime(unless="by_country")] = "facts"

    @property
    def by_country(self) -> bool:
        return self.fame == "countries"

    def world(self) -> World:
        return build(self.seed, self.fame)
