"""How a recipe names a judge: `name`, or `{name: …, settings…}`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.common.named import Kind, Use
from posttrain.feedback.judge import Judge, PairJudge


class JudgeUse(Use):
    """A judge as a recipe uses it."""

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


def _builtin() -> dict[str, type[Config]]:
    from posttrain.feedback.judges import JUDGES

    return JUDGES


_KIND = Kind("judge", _builtin, ("open",))


def read_judge(value: Any) -> JudgeUse:
    """A `JudgeUse` from a name, a mapping or a judge's own config. Raises ValueError."""
    return _KIND.read(JudgeUse, value)


JudgeField = Annotated[JudgeUse, BeforeValidator(read_judge)]
