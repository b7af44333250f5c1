"""The registry of engines, and how a recipe names one."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BeforeValidator

from posttrain.common.config import Config
from posttrain.common.named import Kind, Use
from posttrain.engines.http import Http
from posttrain.engines.token_writer import Local
from posttrain.engines.vllm import Vllm
from posttrain.engines.writer import EngineConfig

ENGINES: dict[str, type[Config]] = {"local": Local, "http": Http, "vllm": Vllm}
_KIND = Kind("engine", lambda: ENGINES, ("takes", "check", "open"))


class EngineUse(Use):
    """An engine as a recipe uses it."""

    @property
    def engine(self) -> EngineConfig:
        return cast(EngineConfig, self.settings)  # `read_engine` sees to it


def read_engine(value: Any) -> EngineUse:
    """An `EngineUse` from a name, a mapping or an engine's own config. Raises ValueError."""
    return _KIND.read(EngineUse, value)


EngineField = Annotated[EngineUse, BeforeValidator(read_engine)]
