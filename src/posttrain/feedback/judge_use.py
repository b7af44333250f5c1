"""How a recipe names a judge: `name`, or `{name: …, settings…}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, model_serializer

from posttrain.common.config import Config, parse
from posttrain.common.errors import ConfigError
from posttrain.common.registry import resolve
from posttrain.feedback.judge import Judge, PairJudge


class JudgeUse(Config):
    """A judge as a recipe uses it: written `name`, or `{name: …, settings…}`."""

    name: str
    settings: SerializeAsAny[Config]

    @property
    def label(self) -> str:
        """How rows name the judge: as its settings say (a `label`), else the name it is registered by."""
        return str(getattr(self.settings, "label", self.name))

    def open(self) -> Judge | PairJudge:
        """The judge, ready to answer. Raises ConfigError where it can neither score nor compare."""
        judge = self.settings.open()  # type: ignore[attr-defined]  # `read_judge` sees to it
        if not isinstance(judge, Judge | PairJudge):
            raise ConfigError(
                f"judge '{self.name}' opens a {type(judge).__name__}, which has no score and no compare"
            )
        return judge

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        return {"name": plain["name"], **plain["settings"]}


def read_judge(value: Any) -> Any:
    """A `JudgeUse` from what a recipe or a script gives: a name, a mapping, or a judge's own config.

    Raises ValueError with what to change; pydantic puts the place in front.
    """
    if isinstance(value, JudgeUse):
        return value
    if isinstance(value, Config):
        return JudgeUse(name=_name_of(value), settings=value)
    spec = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = spec.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"a judge is a name or a mapping with a 'name', got {value!r}")
    try:
        cls = resolve("judges", name, builtin_judges())
        if not (isinstance(cls, type) and issubclass(cls, Config) and hasattr(cls, "open")):
            raise ConfigError(f"'{name}' is no judge: a judge is a Config class with `open()`")
        return JudgeUse(name=name, settings=parse(cls, spec, f"judge {name}"))
    except ConfigError as e:
        raise ValueError(str(e)) from None


def builtin_judges() -> dict[str, type[Config]]:
    """The registry; asked for late, for some judges are made of judges."""
    from posttrain.feedback.judges import JUDGES

    return JUDGES


def _name_of(judge: Config) -> str:
    for name, cls in builtin_judges().items():
        if type(judge) is cls:
            return name
    return f"{type(judge).__module__}:{type(judge).__qualname__}"


JudgeField = Annotated[JudgeUse, BeforeValidator(read_judge)]
