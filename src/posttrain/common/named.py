"""What a recipe picks from a registry by name: written `name`, or `{name: …, settings…}`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import SerializeAsAny, model_serializer

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve


class Use(Config):
    """One thing of a registry with its settings. A subclass may add fields that every such thing takes."""

    name: str
    settings: SerializeAsAny[Config]

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        settings = plain.pop("settings")
        return {**plain, **settings}


U = TypeVar("U", bound=Use)


@dataclass(frozen=True)
class Kind:
    """Things of one sort: config classes found by name.

    noun: "judge", say; entry points are of group `posttrain.<noun>s`. builtin: asked for late, since
    some judges are made of judges. parts: what the class of such a thing must have.
    functions: the built-in thing that a plain function becomes, which has it in its field `call`; "" where a
    function will not do.
    """

    noun: str
    builtin: Callable[[], Mapping[str, type[Config]]]
    parts: tuple[str, ...]
    functions: str = ""

    def read(self, use: type[U], value: Any) -> U:
        """A `use` from what a recipe or a script gives: a name, a mapping, or a thing's own config.

        Raises ValueError with what to change; pydantic puts the place in front.
        """
        if isinstance(value, use):
            return value
        if isinstance(value, Config):
            return use(name=self._name_of(value), settings=value)
        if self.functions and inspect.isfunction(value):
            value = {"name": self.functions, "call": f"{value.__module__}:{value.__qualname__}"}
        spec = (
            {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        )
        name = spec.pop("name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{self._a()} is a name or a mapping with a 'name', got {value!r}")
        shared = {
            field: spec.pop(field) for field in use.model_fields if field in spec and field != "settings"
        }
        try:
            if self.functions and ":" in name and inspect.isfunction(self._found(name)):
                name, spec = self.functions, {"call": name, **spec}
            return use(name=name, settings=parse(self._class(name), spec, f"{self.noun} {name}"), **shared)
        except ConfigError as e:
            raise ValueError(str(e)) from None

    def _class(self, name: str) -> type[Config]:
        found = self._found(name)
        if (
            isinstance(found, type)
            and issubclass(found, Config)
            and all(hasattr(found, p) for p in self.parts)
        ):
            return found
        raise ConfigError(
            f"'{name}' is no {self.noun}: {self._a()} is a Config class with {', '.join(self.parts)}"
            + ", or a function" * bool(self.functions)
        )

    def _found(self, name: str) -> Any:
        return resolve(f"{self.noun}s", name, self.builtin())

    def _name_of(self, settings: Config) -> str:
        for name, cls in self.builtin().items():
            if type(settings) is cls:
                return name
        return f"{type(settings).__module__}:{type(settings).__qualname__}"

    def _a(self) -> str:
        return f"an {self.noun}" if self.noun[0] in "aeiou" else f"a {self.noun}"
