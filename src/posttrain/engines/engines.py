"""The registry of engines, and how a recipe names one."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, cast

from pydantic import BeforeValidator

from posttrain.common.config import Config
from posttrain.common.named import Kind, Use
from posttrain.engines.http import Http
from posttrain.engines.protocol import SamplingParams
from posttrain.engines.token_writer import Local
from posttrain.engines.vllm import Vllm
from posttrain.engines.writer import EngineConfig
from posttrain.models.spec import ModelSpec

ENGINES: dict[str, type[Config]] = {"local": Local, "http": Http, "vllm": Vllm}
# Fields that only some engines have a use for.
_SOME = frozenset({"model", "precision", "batch_tokens", "device"})
_KIND = Kind("engine", lambda: ENGINES, ("takes", "check", "open"))


class EngineUse(Use):
    """An engine as a recipe uses it."""

    @property
    def engine(self) -> EngineConfig:
        return cast(EngineConfig, self.settings)  # `read_engine` sees to it

    def check(self, given: Set[str], model: ModelSpec | None, params: SamplingParams) -> None:
        """Raise ValueError where the engine lacks what it needs, or has no use for a field that is set.

        given: names of the fields that are set beside the engine.
        """
        if "model" in self.engine.takes and model is None:
            raise ValueError(f"'model' is missing: engine {self.name} needs one")
        idle = (given & _SOME) - self.engine.takes
        if idle:
            raise ValueError(f"'{min(idle)}' is set, and engine {self.name} takes none; leave it out")
        self.engine.check(params)


def read_engine(value: Any) -> EngineUse:
    """An `EngineUse` from a name, a mapping or an engine's own config. Raises ValueError."""
    return _KIND.read(EngineUse, value)


EngineField = Annotated[EngineUse, BeforeValidator(read_engine)]
