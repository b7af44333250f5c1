"""How a recipe names a judge: `name`, or `{name: …, settings…}`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from posttrain.common.config import Config
from posttrain.common.errors import ConfigError
from posttrain.common.named import Kind, Use
from posttrain.common.step import StepContext
from posttrain.feedback.judge import Account, Judge, PaidConfig, PairJudge


class JudgeUse(Use):
    """A judge as a recipe uses it."""

    @property
    def label(self) -> str:
        """How rows name the judge: as its settings say (a `label`), else the name it is registered by."""
        return str(getattr(self.settings, "label", self.name))

    def open(self, account: Account | None = None) -> Judge | PairJudge:
        """The judge, ready to answer. account: for one that pays for its answers.

        Raises ConfigError where it can neither score nor compare.
        """
        if account is not None and isinstance(self.settings, PaidConfig):
            judge = self.settings.open_with(account)
        else:
            judge = self.settings.open()  # type: ignore[attr-defined]  # `read_judge` sees to it
        if not isinstance(judge, Judge | PairJudge):
            raise ConfigError(
                f"judge '{self.name}' opens a {type(judge).__name__}, which has no score and no compare"
            )
        return judge


def account_of(ctx: StepContext) -> Account:
    """Where a step keeps paid answers: shared by all steps of a store, each booked to the step that paid."""
    return Account((ctx.cache or ctx.state) / "replies", ctx.out.name)


def _builtin() -> dict[str, type[Config]]:
    from posttrain.feedback.judges import JUDGES

    return JUDGES


_KIND = Kind("judge", _builtin, ("open",), functions="function")


def read_judge(value: Any) -> JudgeUse:
    """A `JudgeUse` from a name, a mapping or a judge's own config. Raises ValueError."""
    return _KIND.read(JudgeUse, value)


JudgeField = Annotated[JudgeUse, BeforeValidator(read_judge)]
