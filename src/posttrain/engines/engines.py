"""The registry of engines, and how a recipe names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, SerializeAsAny, model_serializer

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.engines.http import Http
from posttrain.engines.token_writer import Local
from posttrain.engines.vllm import Vllm
from posttrain.engines.writer import EngineConfig

ENGINES: dict[str, type[Config]] = {"local": Local, "http": Http, "vllm": Vllm}


class EngineUse(Config):
    """An engine as a recipe uses it: written `name`, or `{name: …, settings…}`."""

    name: str
    settings: SerializeAsAny[Config]

    @property
    def engine(self) -> EngineConfig:
        return cast(EngineConfig, self.settings)  # `read_engine` sees to it

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        return {"name": plain["name"], **plain["settings"]}


def read_engine(value: Any) -> Any:
    """An `EngineUse` from what a recipe or a script gives: a name, a mapping, or an engine's own config.

    Raises ValueError with what to change; pydantic puts the place in front.
    """
    if isinstance(value, EngineUse):
        return value
    if isinstance(value, Config):
        return EngineUse(name=_name_of(value), settings=value)
    spec = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = spec.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"an engine is a name or a mapping with a 'name', got {value!r}")
    try:
        cls = resolve("engines", name, ENGINES)
        parts = ("takes", "check", "open")
        if not (isinstance(cls, type) and issubclass(cls, Config) and all(hasattr(cls, p) for p in parts)):
            raise ConfigError(f"'{name}' is no engine: an engine is a Config class with {', '.join(parts)}")
        return EngineUse(name=name, settings=parse(cls, spec, f"engine {name}"))
    except ConfigError as e:
        raise ValueError(str(e)) from None


def _name_of(engine: Config) -> str:
    for name, cls in ENGINES.items():
        if type(engine) is cls:
            return name
    return f"{type(engine).__module__}:{type(engine).__qualname__}"


EngineField = Annotated[EngineUse, BeforeValidator(read_engine)]
